#include "trainer/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "kernels/base/error.h"
#include "trainer/schema.h"

namespace levin {
namespace {

namespace fs = std::filesystem;

constexpr size_t max_file_bytes = 1 << 20;  // the largest configuration anyone writes by hand is far below
constexpr size_t max_base_depth = 32;

using Values = std::map<std::string, ConfigValue>;  // by dotted key

[[noreturn]] void unknown_key(const std::string& where, const std::string& key) {
    fail(Fault::input, where,
         "unknown key {}; the nearest valid key is {} (`levin config docs` lists them all)", key,
         nearest_key(key));
}

std::string read_file(const std::string& path, const std::string& asked_by) {
    const std::string where = asked_by.empty() ? path : asked_by;
    LEVIN_REQUIRE(
        fs::is_regular_file(path), where,
        "there is no configuration file {}; give the path of a YAML file, such as configs/tiny.yaml", path);
    LEVIN_REQUIRE(fs::file_size(path) <= max_file_bytes, where,
                  "{} has {} bytes, a configuration has at most {}; is it another kind of file?", path,
                  fs::file_size(path), max_file_bytes);
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    LEVIN_REQUIRE(file.good(), where, "{} cannot be read; check its permissions", path);
    return text.str();
}

// YAML's own message for a line indented with a tab names neither.
std::string hint_about_tabs(const std::string& text) {
    size_t line = 1;
    for (size_t at = 0; at < text.size(); at = text.find('\n', at) + 1, ++line) {
        const size_t first = text.find_first_not_of(' ', at);
        if (first != std::string::npos && text[first] == '\t')
            return fmt::format("; line {} is indented with a tab, YAML takes spaces only", line);
        if (text.find('\n', at) == std::string::npos) break;
    }
    return "";
}

YAML::Node parse_yaml(const std::string& text, const std::string& name) {
    try {
        const std::vector<YAML::Node> documents = YAML::LoadAll(text);
        LEVIN_REQUIRE(documents.size() <= 1, name, "holds {} YAML documents; expected one", documents.size());
        return documents.empty() ? YAML::Node() : documents[0];
    } catch (const YAML::Exception& error) {
        fail(Fault::input, place_of(name, error.mark), "not valid YAML: {}{}", error.msg,
             hint_about_tabs(text));
    }
}

// Reads one file and its bases into flat dotted keys, and then the overrides.
class Loader {
public:
    void add_file(const std::string& path, const std::string& asked_by) {
        const std::string canonical = fs::weakly_canonical(path).string();
        const auto earlier = std::find(open_.begin(), open_.end(), canonical);
        LEVIN_REQUIRE(earlier == open_.end() && open_.size() < max_base_depth, asked_by,
                      "`base` leads in a circle: {} -> {}; remove one of them", fmt::join(open_, " -> "),
                      canonical);
        open_.push_back(canonical);
        add_text(read_file(path, asked_by), path, fs::path(path).parent_path());
        open_.pop_back();
    }

    void add_text(const std::string& text, const std::string& name, const fs::path& folder) {
        const YAML::Node root = parse_yaml(text, name);
        if (root.IsNull()) return;
        LEVIN_REQUIRE(
            root.IsMap(), place_of(name, root.Mark()),
            "the file is no mapping of sections; expected lines such as `trainer:` with `  steps: 1000` "
            "under it");
        Values own;
        for (const auto& item : root) {
            const std::string section = key_text(item.first, name);
            const std::string where = place_of(name, item.first.Mark());
            if (section == "base") {
                add_bases(item.second, name, folder);
            } else if (section.find('.') != std::string::npos) {
                add_value(own, section, item.first, item.second, name);
            } else {
                add_section(own, section, where, item.second, name);
            }
        }
        for (auto& [key, value] : own) values_[key] = std::move(value);
    }

    void add_override(const std::string& text) {
        const std::string where = fmt::format("override '{}'", text);
        const size_t equals = text.find('=');
        LEVIN_REQUIRE(equals != std::string::npos && equals > 0, where,
                      "expected key=value, for example trainer.steps=100");
        const std::string path = text.substr(0, equals), value = text.substr(equals + 1);
        LEVIN_REQUIRE(path != "base", where,
                      "`base` belongs into a configuration file; give that file instead");
        const SchemaKey* key = find_key(path);
        if (!key && is_section(path))
            fail(Fault::input, where, "{} is a section; set its keys one by one, for example {}.{}={}", path,
                 path, first_key(path).name, first_key(path).example);
        if (!key) unknown_key(where, path);
        ConfigValue entry{.node = {}, .key = path, .file = "", .where = where};
        if (key->plain_text && (value.empty() || std::string("[{\"'").find(value[0]) == std::string::npos)) {
            entry.node.reset(YAML::Node(value));
        } else {
            entry.node.reset(parse_yaml(value, where));
        }
        values_.insert_or_assign(path, entry);
    }

    // Defaults of the family first, then every value in its place.
    Config resolve() const {
        Config config;
        if (const auto family = values_.find("model.family"); family != values_.end()) {
            find_key("model.family")->read(config, family->second);
            config.model = ModelConfig::of(config.model.family);
        }
        for (const auto& [path, value] : values_) find_key(path)->read(config, value);
        try {
            validate(config);
        } catch (const Error& error) {
            throw_with_place(error);
        }
        return config;
    }

private:
    static std::string key_text(const YAML::Node& key, const std::string& name) {
        LEVIN_REQUIRE(key.IsScalar(), place_of(name, key.Mark()), "a key must be a plain word");
        return key.Scalar();
    }

    void add_bases(const YAML::Node& node, const std::string& name, const fs::path& folder) {
        const auto add = [&](const YAML::Node& path) {
            LEVIN_REQUIRE(
                path.IsScalar() && !path.Scalar().empty(), place_of(name, node.Mark()),
                "base must be the path of a configuration file, or a list of them, relative to this file");
            add_file((folder / path.Scalar()).string(), place_of(name, path.Mark()));
        };
        if (node.IsSequence()) {
            for (const auto& path : node) add(path);
        } else {
            add(node);
        }
    }

    void add_section(Values& own, const std::string& section, const std::string& where,
                     const YAML::Node& node, const std::string& name) {
        if (!is_section(section)) {
            const bool holds_keys = node.IsMap() && node.size() > 0 && node.begin()->first.IsScalar();
            const std::string full = holds_keys ? section + "." + node.begin()->first.Scalar() : section;
            const std::string nearest = nearest_key(full);
            fail(Fault::input, where, "unknown key {}; the nearest valid key is {}", section,
                 holds_keys ? nearest.substr(0, nearest.find('.')) : nearest);
        }
        if (node.IsNull()) return;
        LEVIN_REQUIRE(node.IsMap(), place_of(name, node.Mark()),
                      "{} is a section; expected keys under it, for example `{}: {{{}: {}}}`", section,
                      section, first_key(section).name, first_key(section).example);
        for (const auto& item : node)
            add_value(own, section + "." + key_text(item.first, name), item.first, item.second, name);
    }

    static bool is_section(const std::string& name) {
        const auto& sections = schema_sections();
        return std::any_of(sections.begin(), sections.end(), [&](const auto& s) { return s.name == name; });
    }

    static const SchemaKey& first_key(const std::string& section) {
        return *std::find_if(schema().begin(), schema().end(),
                             [&](const auto& k) { return k.section == section; });
    }

    static void add_value(Values& own, const std::string& path, const YAML::Node& key, const YAML::Node& node,
                          const std::string& name) {
        const std::string where = place_of(name, key.Mark());
        if (!find_key(path)) unknown_key(where, path);
        const auto earlier = own.find(path);
        if (earlier != own.end())
            fail(Fault::input, where, "{} stands twice, first at {}; remove one of them", path,
                 earlier->second.where);
        ConfigValue entry{.node = {}, .key = path, .file = name, .where = ""};
        // An empty value may have no place of its own.
        entry.where = node.IsNull() || node.Mark().is_null() ? where : place_of(name, node.Mark());
        entry.node.reset(node);
        own.emplace(path, entry);
    }

    // A combination is judged without knowing the file: give the place of the key that the message names
    // first.
    [[noreturn]] void throw_with_place(const Error& error) const {
        const std::string text = error.what(), prefix = "[config] ";
        if (!text.starts_with(prefix)) throw error;
        const ConfigValue* place = nullptr;
        size_t first = std::string::npos;
        for (const auto& [path, value] : values_)
            if (const size_t at = text.find(path); at < first) {
                first = at;
                place = &value;
            }
        if (!place) throw error;
        throw Error(error.fault(), place->where, text.substr(prefix.size()));
    }

    Values values_;
    std::vector<std::string> open_;  // files being read, outermost first
};

}  // namespace

std::string Config::checkpoint_folder() const {
    return checkpoint.folder.empty() ? (fs::path(run.folder) / "checkpoints").string() : checkpoint.folder;
}

double OptimizerConfig::final_learning_rate() const {
    return min_learning_rate < 0 ? 0.1 * learning_rate : min_learning_rate;
}

Config load_config(const std::string& path, const std::vector<std::string>& overrides) {
    Loader loader;
    loader.add_file(path, "");
    for (const std::string& text : overrides) loader.add_override(text);
    return loader.resolve();
}

Config parse_config(const std::string& text, const std::string& name,
                    const std::vector<std::string>& overrides) {
    Loader loader;
    loader.add_text(text, name, ".");
    for (const std::string& override_text : overrides) loader.add_override(override_text);
    return loader.resolve();
}

namespace {

std::string write_section(const Config& config, const std::string& section) {
    std::string text = section + ":\n";
    for (const SchemaKey& key : schema())
        if (key.section == section) text += fmt::format("  {}: {}\n", key.name, key.write(config));
    return text;
}

}  // namespace

std::string to_yaml(const Config& config) {
    std::string text;
    for (const SchemaSection& section : schema_sections()) text += write_section(config, section.name);
    return text;
}

std::string to_yaml(const ModelConfig& model) {
    Config config;
    config.model = model;
    return write_section(config, "model");
}

}  // namespace levin
