#include "checkpoint/pickle.h"

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>
#include <variant>

#include "kernels/base/error.h"

namespace levin {

namespace {

namespace fs = std::filesystem;

struct Value;
using ValuePointer = std::shared_ptr<const Value>;

struct Mark {};
struct Nothing {};  // None, and everything whose content does not matter (metadata, floats)
struct Global {
    std::string name;  // "torch FloatStorage"
};
struct StorageReference {
    std::string key, type;
    int64_t count;
};
struct Tuple {
    std::vector<ValuePointer> items;
};
struct Dictionary {
    // Only tensors are kept: a dictionary inside a dictionary (metadata) counts as nothing. So no value can
    // contain itself, and nesting is bounded by that of tuples.
    std::vector<std::pair<std::string, PickledTensor>> tensors;
};
struct Value {
    std::variant<Nothing, Mark, bool, int64_t, std::string, Global, StorageReference, PickledTensor, Tuple,
                 std::shared_ptr<Dictionary>>
        content;
    int depth = 0;
};

// Numbers of one element of a storage type, by the name after "torch ".
const std::map<std::string, std::pair<uint64_t, DType>>& storage_types() {
    static const std::map<std::string, std::pair<uint64_t, DType>> types{
        {"FloatStorage", {4, DType::f32}},     {"DoubleStorage", {8, DType::f64}},
        {"BFloat16Storage", {2, DType::bf16}}, {"HalfStorage", {2, DType::f32}},
        {"LongStorage", {8, DType::i64}},      {"IntStorage", {4, DType::i32}},
        {"ShortStorage", {2, DType::i16}},     {"CharStorage", {1, DType::i8}},
        {"ByteStorage", {1, DType::u8}}};
    return types;
}

class Machine {
public:
    Machine(std::string_view program, const std::string& where) : program_(program), where_(where) {}

    std::vector<std::pair<std::string, PickledTensor>> run() {
        for (;;) {
            const auto code = static_cast<unsigned char>(take(1)[0]);
            if (code == '.') break;
            step(code);
        }
        const ValuePointer result = pop();
        const auto* dictionary = std::get_if<std::shared_ptr<Dictionary>>(&result->content);
        if (!dictionary) refuse("the pickle is no dictionary of tensors");
        return (*dictionary)->tensors;
    }

private:
    [[noreturn]] void refuse(const std::string& what) const {
        fail(Fault::input, where_, "{} (byte {} of the pickle); levin reads dictionaries of tensors only",
             what, at_);
    }
    std::string_view take(size_t bytes) {
        if (bytes > program_.size() - at_) refuse("the pickle is cut short");
        const auto text = program_.substr(at_, bytes);
        at_ += bytes;
        return text;
    }
    template <class T>
    T number() {
        T value;
        std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
        return value;
    }
    std::string line() {
        const size_t end = program_.find('\n', at_);
        if (end == std::string_view::npos) refuse("the pickle is cut short");
        const std::string text(program_.substr(at_, end - at_));
        at_ = end + 1;
        return text;
    }
    template <class T>
    void push(T content, int depth = 0) {
        if (depth > 16) refuse("values are nested too deeply");
        stack_.push_back(std::make_shared<const Value>(Value{std::move(content), depth}));
    }
    ValuePointer pop() {
        if (stack_.empty()) refuse("the pickle takes a value that is not there");
        ValuePointer value = std::move(stack_.back());
        stack_.pop_back();
        return value;
    }
    // The values above the last mark, which goes too.
    std::vector<ValuePointer> pop_to_mark() {
        size_t mark = stack_.size();
        while (mark > 0 && !std::holds_alternative<Mark>(stack_[mark - 1]->content)) --mark;
        if (mark == 0) refuse("the pickle takes values up to a mark that is not there");
        std::vector<ValuePointer> values(stack_.begin() + static_cast<int64_t>(mark), stack_.end());
        stack_.resize(mark - 1);
        return values;
    }
    void push_tuple(std::vector<ValuePointer> items) {
        int depth = 0;
        for (const auto& item : items) depth = std::max(depth, item->depth + 1);
        push(Tuple{std::move(items)}, depth);
    }
    void push_tuple(size_t count) {
        std::vector<ValuePointer> items(count);
        while (count > 0) items[--count] = pop();
        push_tuple(std::move(items));
    }
    template <class T>
    const T& as(const ValuePointer& value, const char* expected) const {
        const T* content = std::get_if<T>(&value->content);
        if (!content) refuse(fmt::format("expected {}", expected));
        return *content;
    }
    void set_item(const ValuePointer& dictionary, const ValuePointer& key, const ValuePointer& value) {
        const auto& target = as<std::shared_ptr<Dictionary>>(dictionary, "a dictionary");
        const auto* name = std::get_if<std::string>(&key->content);
        const auto* tensor = std::get_if<PickledTensor>(&value->content);
        if (name && tensor) target->tensors.emplace_back(*name, *tensor);
    }

    void step(unsigned char code) {
        switch (code) {
            case 0x80: {  // PROTO
                const int protocol = number<uint8_t>();
                if (protocol > 5) refuse(fmt::format("pickle protocol {} is not known", protocol));
                break;
            }
            case 0x95:
                take(8);
                break;  // FRAME
            case '}':
                push(std::make_shared<Dictionary>());
                break;  // EMPTY_DICT
            case ')':
                push_tuple(size_t{0});
                break;  // EMPTY_TUPLE
            case '(':
                push(Mark{});
                break;  // MARK
            case 'N':
                push(Nothing{});
                break;  // NONE
            case 0x88:
                push(true);
                break;  // NEWTRUE
            case 0x89:
                push(false);
                break;  // NEWFALSE
            case 'K':
                push(int64_t{number<uint8_t>()});
                break;  // BININT1
            case 'M':
                push(int64_t{number<uint16_t>()});
                break;  // BININT2
            case 'J':
                push(int64_t{number<int32_t>()});
                break;  // BININT
            case 0x8a:
                push(long_integer());
                break;  // LONG1
            case 'G':
                take(8), push(Nothing{});
                break;  // BINFLOAT
            case 'X':
                push(std::string(take(number<uint32_t>())));
                break;  // BINUNICODE
            case 0x8c:
                push(std::string(take(number<uint8_t>())));
                break;  // SHORT_BINUNICODE
            case 't':
                push_tuple(pop_to_mark());
                break;  // TUPLE
            case 0x85:
                push_tuple(size_t{1});
                break;  // TUPLE1..3
            case 0x86:
                push_tuple(size_t{2});
                break;
            case 0x87:
                push_tuple(size_t{3});
                break;
            case 'q':
                memoize(number<uint8_t>());
                break;  // BINPUT
            case 'r':
                memoize(number<uint32_t>());
                break;  // LONG_BINPUT
            case 0x94:
                memoize(static_cast<uint32_t>(memo_.size()));
                break;  // MEMOIZE
            case 'h':
                recall(number<uint8_t>());
                break;  // BINGET
            case 'j':
                recall(number<uint32_t>());
                break;   // LONG_BINGET
            case 'c': {  // GLOBAL
                const std::string module = line();
                global(module, line());
                break;
            }
            case 0x93: {  // STACK_GLOBAL
                const ValuePointer name = pop(), module = pop();
                global(as<std::string>(module, "a module's name"), as<std::string>(name, "a name"));
                break;
            }
            case 'Q':
                persistent();
                break;  // BINPERSID
            case 'R':
                reduce();
                break;   // REDUCE
            case 's': {  // SETITEM
                const ValuePointer value = pop(), key = pop();
                if (stack_.empty()) refuse("no dictionary to put an item into");
                set_item(stack_.back(), key, value);
                break;
            }
            case 'u': {  // SETITEMS
                const auto items = pop_to_mark();
                if (stack_.empty() || items.size() % 2 != 0) refuse("no dictionary to put items into");
                for (size_t i = 0; i < items.size(); i += 2) set_item(stack_.back(), items[i], items[i + 1]);
                break;
            }
            case 'b': {  // BUILD: attributes of the dictionary (_metadata), which do not matter
                pop();
                if (stack_.empty()) refuse("attributes without an object");
                as<std::shared_ptr<Dictionary>>(stack_.back(), "attributes of a dictionary");
                break;
            }
            default:
                refuse(
                    fmt::format("the pickle instruction 0x{:02x} is not one that describes tensors", code));
        }
    }

    int64_t long_integer() {
        const size_t bytes = number<uint8_t>();
        if (bytes > 8) refuse("a number is too large");
        const auto text = take(bytes);
        uint64_t value = bytes > 0 && (text.back() & 0x80) ? ~uint64_t{0} : 0;
        std::memcpy(&value, text.data(), bytes);
        return static_cast<int64_t>(value);
    }
    void memoize(uint32_t slot) {
        if (stack_.empty()) refuse("nothing to remember");
        memo_[slot] = stack_.back();
    }
    void recall(uint32_t slot) {
        const auto found = memo_.find(slot);
        if (found == memo_.end()) refuse(fmt::format("value {} was never remembered", slot));
        stack_.push_back(found->second);
    }
    void global(const std::string& module, const std::string& name) {
        const bool allowed =
            (module == "torch._utils" && (name == "_rebuild_tensor_v2" || name == "_rebuild_parameter")) ||
            (module == "collections" && name == "OrderedDict") ||
            (module == "torch" && storage_types().count(name));
        if (!allowed) refuse(fmt::format("the pickle asks for {}.{}, which would be run", module, name));
        push(Global{module + " " + name});
    }
    // ("storage", torch.FloatStorage, key, device, count)
    void persistent() {
        const ValuePointer value = pop();
        const auto& items = as<Tuple>(value, "a storage's description").items;
        if (items.size() != 5 || as<std::string>(items[0], "\"storage\"") != "storage")
            refuse("expected a storage");
        const std::string type = as<Global>(items[1], "a storage type").name;
        if (!type.starts_with("torch ")) refuse("expected a storage type");
        push(StorageReference{as<std::string>(items[2], "a storage's key"), type.substr(6),
                              as<int64_t>(items[4], "a count")});
    }
    void reduce() {
        const ValuePointer arguments = pop(), function = pop();
        const auto& items = as<Tuple>(arguments, "arguments").items;
        const std::string& name = as<Global>(function, "a function").name;
        if (name == "collections OrderedDict") {
            if (!items.empty()) refuse("expected an empty OrderedDict");
            push(std::make_shared<Dictionary>());
        } else if (name == "torch._utils _rebuild_parameter") {
            if (items.empty()) refuse("expected a parameter's tensor");
            push(as<PickledTensor>(items[0], "a tensor"));
        } else if (name == "torch._utils _rebuild_tensor_v2") {
            push(tensor(items));
        } else {
            refuse(fmt::format("the pickle calls {}", name));
        }
    }
    // (storage, offset, shape, strides, requires_grad, hooks)
    PickledTensor tensor(const std::vector<ValuePointer>& items) {
        if (items.size() < 4) refuse("expected a tensor's description");
        const auto& storage = as<StorageReference>(items[0], "a storage");
        const int64_t first = as<int64_t>(items[1], "an offset");
        const auto &extents = as<Tuple>(items[2], "a shape").items,
                   &strides = as<Tuple>(items[3], "strides").items;
        PickledTensor result{"data/" + storage.key, storage.type, static_cast<uint64_t>(first), {}};
        if (extents.size() != strides.size() || extents.size() > 16)
            refuse("a tensor's shape and strides disagree");
        int64_t count = 1;
        for (size_t i = extents.size(); i-- > 0;) {
            const int64_t extent = as<int64_t>(extents[i], "an extent"),
                          stride = as<int64_t>(strides[i], "a stride");
            if (extent < 0) refuse("a tensor has a negative extent");
            if (extent > 1 && stride != count)
                refuse("a tensor's numbers do not lie in order; save it contiguous");
            if (__builtin_mul_overflow(count, extent, &count)) refuse("a tensor is too large");
            result.shape.insert(result.shape.begin(), extent);
        }
        if (first < 0 || storage.count < 0 || first > storage.count || count > storage.count - first)
            refuse("a tensor lies outside of its storage");
        return result;
    }

    std::string_view program_;
    const std::string& where_;
    size_t at_ = 0;
    std::vector<ValuePointer> stack_;
    std::unordered_map<uint32_t, ValuePointer> memo_;
};

}  // namespace

std::vector<std::pair<std::string, PickledTensor>> parse_pickled_tensors(std::string_view pickle,
                                                                         const std::string& where) {
    return Machine(pickle, where).run();
}

bool PickleReader::recognizes(const std::string& folder) {
    std::error_code ignored;
    return fs::exists(fs::path(folder) / "pytorch_model.bin", ignored) ||
           fs::exists(fs::path(folder) / "pytorch_model.bin.index.json", ignored);
}

PickleReader::PickleReader(const std::string& folder) : folder_(folder) {
    const fs::path single = fs::path(folder) / "pytorch_model.bin", index = single.string() + ".index.json";
    std::error_code ignored;
    if (fs::exists(single, ignored))
        add_file(single.string());
    else
        for (const auto& shard : shards_of_index(index.string()))
            add_file((fs::path(folder) / shard).string());
}

void PickleReader::add_file(const std::string& path) {
    archives_.push_back(std::make_unique<StoredZip>(path));
    const StoredZip& zip = *archives_.back();
    const std::string where = "file " + path;
    // Everything lies in one folder inside the archive, of any name.
    std::string root;
    for (const auto& [name, entry] : zip.entries())
        if (name.ends_with("/data.pkl")) root = name.substr(0, name.size() - 8);
    const auto pickle = zip.entries().find(root + "data.pkl");
    LEVIN_REQUIRE(pickle != zip.entries().end(), where, "holds no data.pkl: not written by torch.save()");
    LEVIN_REQUIRE(pickle->second.bytes <= (256u << 20), where, "its data.pkl has {} bytes",
                  pickle->second.bytes);
    std::string program(pickle->second.bytes, '\0');
    zip.file().read(pickle->second.offset, program.data(), program.size());
    for (auto& [name, tensor] : parse_pickled_tensors(program, where)) {
        const auto storage = zip.entries().find(root + tensor.storage);
        LEVIN_REQUIRE(storage != zip.entries().end(), where, "tensor '{}' lies in {}, which is missing", name,
                      tensor.storage);
        const uint64_t width = storage_types().at(tensor.storage_type).first,
                       held = storage->second.bytes / width;
        LEVIN_REQUIRE(
            tensor.first <= held && static_cast<uint64_t>(element_count(tensor.shape)) <= held - tensor.first,
            where, "tensor '{}' {} lies outside of {}", name, to_string(tensor.shape), tensor.storage);
        const uint64_t offset = storage->second.offset + tensor.first * width;
        LEVIN_REQUIRE(places_.emplace(name, Place{archives_.size() - 1, offset, tensor}).second, where,
                      "tensor '{}' is in the model twice", name);
        names_.push_back(name);
    }
}

const PickleReader::Place& PickleReader::place(const std::string& name) const {
    const auto found = places_.find(name);
    LEVIN_REQUIRE(found != places_.end(), folder_, "holds no tensor '{}'", name);
    return found->second;
}

DType PickleReader::dtype(const std::string& name) const {
    return storage_types().at(place(name).tensor.storage_type).second;
}

Tensor PickleReader::read(const std::string& name) const {
    const Place& at = place(name);
    const InputFile& file = archives_[at.archive]->file();
    return at.tensor.storage_type == "HalfStorage"
               ? read_half(file, at.offset, at.tensor.shape)
               : read_numbers(file, at.offset, at.tensor.shape, dtype(name));
}

}  // namespace levin
