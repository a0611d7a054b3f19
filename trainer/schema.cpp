#include "trainer/schema.h"

#include <algorithm>

#include "trainer/schema_types.h"

namespace levin {

#define LEVIN_ENUM_NAMES(E, ...)                              \
    template <>                                               \
    std::span<const EnumName<E>> enum_names() {               \
        static constexpr EnumName<E> names[] = {__VA_ARGS__}; \
        return names;                                         \
    }
LEVIN_ENUM_NAMES(Recompute, {Recompute::none, "none"}, {Recompute::selective, "selective"},
                 {Recompute::full, "full"})
LEVIN_ENUM_NAMES(Switch, {Switch::automatic, "auto"}, {Switch::on, "on"}, {Switch::off, "off"})
LEVIN_ENUM_NAMES(ScheduleType, {ScheduleType::cosine, "cosine"}, {ScheduleType::linear, "linear"},
                 {ScheduleType::constant, "constant"}, {ScheduleType::wsd, "wsd"})
LEVIN_ENUM_NAMES(StoredType, {StoredType::f32, "f32"}, {StoredType::bf16, "bf16"})
LEVIN_ENUM_NAMES(CopyEngineGroups, {CopyEngineGroups::none, "none"}, {CopyEngineGroups::pairs, "pairs"},
                 {CopyEngineGroups::all, "all"})
LEVIN_ENUM_NAMES(DeviceType, {DeviceType::cpu, "cpu"}, {DeviceType::cuda, "cuda"})
LEVIN_ENUM_NAMES(DType, {DType::f32, "f32"}, {DType::bf16, "bf16"}, {DType::f64, "f64"})

namespace {

using namespace schema_types;

// The field, the section and the name of a key in one go, so that they cannot differ.
#define KEY(section_name, field_name, maker, ...)                                               \
    [&] {                                                                                       \
        SchemaKey key = maker(                                                                  \
            [](auto& config) -> auto& { return config.section_name.field_name; }, __VA_ARGS__); \
        key.section = #section_name;                                                            \
        key.name = #field_name;                                                                 \
        keys.push_back(std::move(key));                                                         \
    }()

constexpr int64_t big = int64_t{1} << 40;  // no count in a configuration reaches it

void add_run(std::vector<SchemaKey>& keys) {
    KEY(run, folder, text, "runs/first",
        "Folder of the run: config.yaml, metrics.jsonl, TensorBoard events, report.html and checkpoints go "
        "there. "
        "Needed for training. It belongs to one model, data, seed and global batch; another run is refused "
        "in it.");
    KEY(run, name, text, "first try", "Name shown in reports. Empty: the last part of `run.folder`.");
}

// `lightning`, `softmax`, or a list of them that is repeated over the layers.
template <class Field>
SchemaKey mixers(Field field, std::string documentation) {
    SchemaKey key;
    key.type = "`lightning`, `softmax`, or a list of them";
    key.documentation = std::move(documentation);
    key.example = "[lightning, lightning, lightning, softmax]";
    key.read = [field, example = key.example](Config& config, const ConfigValue& value) {
        std::vector<Mixer> list;
        if (value.node.IsSequence()) {
            for (const auto& child : value.node) list.push_back(read_choice<Mixer>(value.at(child), example));
        } else {
            list.push_back(read_choice<Mixer>(value, example));
        }
        if (list.empty()) wrong_value(value, "lightning, softmax or a list of them", example);
        field(config) = list;
    };
    key.write = [field](const Config& config) {
        std::vector<std::string> names;
        for (const Mixer mixer : field(config)) names.push_back(enum_name(mixer));
        return names.size() == 1 ? names[0] : fmt::format("[{}]", fmt::join(names, ", "));
    };
    return key;
}

// `first`, `all`, `none`, or a list of layer numbers.
template <class Field>
SchemaKey layers(Field field, std::string documentation) {
    SchemaKey key;
    key.type = "`first`, `all`, `none`, or a list of layer numbers";
    key.documentation = std::move(documentation);
    key.example = "[0, 2]";
    key.read = [example = key.example](Config& config, const ConfigValue& value) {
        ModelConfig& model = config.model;
        model.lrpe_list.clear();
        const std::string name = value.node.IsScalar() ? value.node.Scalar() : "";
        if (name == "first") {
            model.lrpe_layers = LrpeLayers::first;
        } else if (name == "all") {
            model.lrpe_layers = LrpeLayers::all;
        } else if (name == "none") {
            model.lrpe_layers = LrpeLayers::none;
        } else if (value.node.IsSequence()) {
            model.lrpe_layers = value.node.size() ? LrpeLayers::listed : LrpeLayers::none;
            for (const auto& child : value.node)
                model.lrpe_list.push_back(read_integer(value.at(child), {0, 1 << 20}, example));
        } else {
            wrong_value(value, "first, all, none or a list of layer numbers, the first layer is 0", example);
        }
    };
    key.write = [field](const Config& config) -> std::string {
        switch (field(config)) {
            case LrpeLayers::first:
                return "first";
            case LrpeLayers::all:
                return "all";
            case LrpeLayers::none:
                return "none";
            case LrpeLayers::listed:
                break;
        }
        return fmt::format("[{}]", fmt::join(config.model.lrpe_list, ", "));
    };
    return key;
}

// `auto` or `none`, kept as a bool.
template <class Field>
SchemaKey resume_mode(Field field, std::string documentation) {
    SchemaKey key;
    key.type = "one of `auto`, `none`";
    key.documentation = std::move(documentation);
    key.example = "auto";
    key.read = [field, example = key.example](Config& config, const ConfigValue& value) {
        const std::string name = value.node.IsScalar() ? value.node.Scalar() : "";
        if (name != "auto" && name != "none") wrong_value(value, "one of auto, none", example);
        field(config) = name == "auto";
    };
    key.write = [field](const Config& config) { return std::string(field(config) ? "auto" : "none"); };
    return key;
}

void add_model(std::vector<SchemaKey>& keys) {
    KEY(model, family, choice<Family>,
        "Sets the defaults of this section. `tnl`: TransNormerLLM; `tnl3`: its third version (activation on "
        "v, "
        "low-rank sigmoid gate); `transformer`: LLaMA-style softmax attention, RoPE, RMSNorm, SwiGLU.");
    KEY(model, vocab_size, integer, {1, 1 << 26}, "Rows of the embedding; every token id must be below it.");
    KEY(model, hidden_size, integer, {1, 1 << 20}, "Model width d.");
    KEY(model, num_layers, integer, {1, 10000},
        "Layers, each an attention block and a gated feed-forward block.");
    KEY(model, num_heads, integer, {1, 1 << 20}, "Attention heads; must divide `hidden_size`.");
    KEY(model, num_kv_heads, integer, {0, 1 << 20},
        "Heads of k and v in softmax layers (grouped-query attention); must divide `num_heads`. 0: "
        "`num_heads`.");
    KEY(model, glu_dim, integer, {-1, 1 << 22},
        "Width f of the gated feed-forward block. 0: ceil(8d/3 / 256) * 256, so a width up to 96 gives 256; "
        "-1: `hidden_size`.");
    KEY(model, gate_dim, integer, {1, 1 << 20}, "Rank of the sigmoid gate.");
    KEY(model, mixer, mixers,
        "Attention of each layer. A list is repeated over the layers: `[lightning, softmax]` alternates.");
    KEY(model, decay, choice<Decay>,
        "Slopes of a lightning layer's exponential decay. `alibi`: the published code, 2^(-8(j+1)/H) falling "
        "to "
        "almost 0 in the last layer; `alibi-no-temperature`: the same in every layer; `paper`: the formula "
        "of "
        "arXiv 2307.14995; `none`: no decay.");
    KEY(model, position, choice<Position>,
        "`lrpe`: learnt rotation in the lightning layers that `lrpe_layers` names, RoPE in softmax layers; "
        "`rope`: "
        "RoPE in softmax layers only; `absolute`: a learnt table of `max_position` rows added to the "
        "embedding; "
        "`none`: the decay alone.");
    KEY(model, lrpe_layers, layers,
        "Lightning layers with LRPE, counted from 0. `first` is the published choice (called `mix` in the "
        "paper).");
    KEY(model, rope_base, real, {.least = 1, .least_open = true}, "Base of RoPE's angles.");
    KEY(model, max_position, integer, {1, 1 << 30}, "Longest sequence with `position: absolute`.");
    KEY(model, gate, choice<Gate>,
        "Output gate of lightning layers. `multiply`: u * norm(o); `sigmoid`: low-rank sigmoid gate of TNL3; "
        "`none`.");
    KEY(model, qk_activation, choice<Activation>,
        "Applied to q and k of lightning layers, with `tnl3` to v too.");
    KEY(model, norm, choice<Norm>,
        "All norms. `simplermsnorm` has no weight, `layernorm` has weight and bias.");
    KEY(model, norm_eps, real, {.least = 0, .most = 1, .most_open = true}, "0: 1e-6, with `layernorm` 1e-5.");
    KEY(model, glu_activation, choice<Activation>,
        "Applied to the first factor of the gated feed-forward block.");
    KEY(model, bias, boolean, "Biases in all projections but the output head.");
    KEY(model, tie_embeddings, boolean, "The output head is the embedding.");
    KEY(model, scale_embedding, boolean, "Multiply the embedding by sqrt(d).");
    KEY(model, init_std, real, {.least = 0, .most = 100}, "Standard deviation of every matrix at the start.");
    KEY(model, bos_token_id, integer, {-1, 1 << 26}, "Begin-of-text token. -1: none.");
    KEY(model, eos_token_id, integer, {-1, 1 << 26}, "End-of-text token: generation stops there. -1: none.");
    KEY(model, pad_token_id, integer, {-1, 1 << 26},
        "Padding token; its embedding starts at zero. -1: none. Keep pad tokens out of training data: the "
        "norm "
        "of a zero row multiplies gradients by 1 / sqrt(norm_eps) = 1000, in every layer where zero rows "
        "still "
        "attend (1+elu, 2+elu, sigmoid or exp for q and k, or a sigmoid gate), until f32 overflows.");
}

void add_data(std::vector<SchemaKey>& keys) {
    KEY(data, train, sources,
        "Token shards PREFIX.bin + PREFIX.idx, as `levin data build` writes them; paths are relative to the "
        "working "
        "folder. A weight is a share of the samples, relative to the other weights, 1 where only others have "
        "one. "
        "Without any weight the shards are one, and each has the share of its tokens. All must be made with "
        "the "
        "same tokenizer. Needed for training.");
    KEY(data, validation, sources, "Held-out shards for the validation loss. Empty: no evaluation.");
    KEY(data, shuffle, boolean,
        "Visit the samples in a random order given by `trainer.seed` and the sample number.");
    KEY(data, packed_documents, boolean,
        "Restart the attention state at document borders, so that a sequence of several documents computes "
        "the same "
        "as the documents alone. The first token of a document is then never predicted, so that `levin "
        "generate` needs "
        "a prompt. Not with `position: absolute`.");
    KEY(data, prefetch, integer, {0, 1024}, "Micro-batches read ahead by a thread. 0: read when needed.");
}

void add_trainer(std::vector<SchemaKey>& keys) {
    KEY(trainer, steps, integer, {1, big}, "Updates in the whole run.");
    KEY(trainer, seed, integer, {0, big}, "Seed of initial weights and sample order.");
    KEY(trainer, threads, integer, {0, 4096},
        "CPU threads of each rank. 0: the cores divided by the ranks on the host.");
    KEY(trainer, device, choice<DeviceType>, "Where the model lives.");
    KEY(trainer, precision, choice<DType>,
        "Arithmetic of the model. Master weights, optimizer state and statistics are f32, with `f64` f64.");
    KEY(trainer, sequence_length, integer, {1, 1 << 30}, "Tokens in a sequence.");
    KEY(trainer, micro_batch, integer, {1, 1 << 20}, "Sequences per rank in one forward and backward pass.");
    KEY(trainer, global_batch, integer, {1, 1 << 30},
        "Sequences per update over all ranks; a multiple of `micro_batch` times the data-parallel ranks. "
        "Gradients of "
        "several passes are added up where needed.");
    KEY(trainer, recompute, choice<Recompute>,
        "Activations formed again in backward to save memory; the gradients are the same to the bit. "
        "`selective`: "
        "norms and gated products, for about 2 % of a step; `full`: all but each layer's input.");
    KEY(trainer, recompute_slice, integer, {0, 1 << 30},
        "With `recompute: full`: tokens that a layer handles at one time, forward and backward, so that only "
        "its "
        "input exists at full length; 65536 keeps a GPU busy. Whole sequences or packed documents where they "
        "fit, "
        "else pieces of one, which softmax layers and `parallel.sequence_scatter` do not take. With "
        "`parallel.cp` so many on each rank. Exact; the gradients' sums are rounded in another order. 0: all "
        "tokens.");
    KEY(trainer, step_graph, choice<Switch>,
        "Forward and backward of a micro-batch recorded as a CUDA graph and launched as a whole: faster for "
        "small "
        "models, whose kernels are shorter than the host takes to launch them. The results are the same to "
        "the "
        "bit. The memory of a pass stays set aside for it between passes. `auto`: on one GPU, where it pays. "
        "`on`: "
        "on one GPU whatever the size. Not with `data.packed_documents` or `model.position: absolute`.");
    KEY(trainer, clip_grad_norm, real, {.least = 0},
        "Gradients are scaled down to this L2 norm. 0: no clipping.");
    KEY(trainer, z_loss, real, {.least = 0},
        "Weight of the penalty on log(Z)^2 of the output softmax. 0: off.");
    KEY(trainer, eval_every, integer, {0, big}, "Steps between evaluations. 0: only after the last step.");
    KEY(trainer, eval_batches, integer, {0, big},
        "Global batches in one evaluation. 0: the whole validation set.");
    KEY(trainer, log_every, integer, {1, big},
        "Steps between progress lines when the output is no terminal.");
    KEY(trainer, loss_chunk_tokens, integer, {0, 1 << 30},
        "Tokens whose logits exist at one time. 0: chosen by the program.");
}

void add_rest(std::vector<SchemaKey>& keys) {
    KEY(optimizer, learning_rate, real, {.least = 0}, "Highest learning rate of AdamW.");
    KEY(optimizer, min_learning_rate, real, {.least = -1},
        "Learning rate the schedule falls to. Below 0: a tenth of `learning_rate`.");
    KEY(optimizer, beta1, real, {.least = 0, .most = 1, .most_open = true}, "Decay of the first moment.");
    KEY(optimizer, beta2, real, {.least = 0, .most = 1, .most_open = true}, "Decay of the second moment.");
    KEY(optimizer, eps, real, {.least = 0, .least_open = true}, "Added to the root of the second moment.");
    KEY(optimizer, weight_decay, real, {.least = 0},
        "Decoupled decay of matrices, the embedding included; not of norms, biases and LRPE angles.");
    KEY(optimizer, moment_dtype, choice<StoredType>,
        "Type both moments are kept in. `bf16`: 4 bytes less a parameter in memory and in checkpoints, and a "
        "faster update; they are rounded up or down at random, without bias and always alike: the results do "
        "not depend on `parallel.zero` or the number of threads, and a resumed run is the same run. A run "
        "may "
        "change this when it is resumed.");

    KEY(schedule, type, choice<ScheduleType>,
        "After the warm-up, down to `optimizer.min_learning_rate` at the end. `wsd`: constant, then a linear "
        "decay "
        "over the last `decay_steps`.");
    KEY(schedule, warmup_steps, integer, {0, big},
        "Steps of linear warm-up: step t uses learning_rate * (t + 1) / warmup_steps. May be longer than the "
        "run.");
    KEY(schedule, decay_steps, integer, {0, big},
        "Length of the decay with `wsd`. 0: a tenth of `trainer.steps`.");

    KEY(checkpoint, every, integer, {0, big}, "Steps between checkpoints. 0: only at the end.");
    KEY(checkpoint, keep, integer, {0, big}, "Newest checkpoints kept. 0: all.");
    KEY(checkpoint, folder, text, "/scratch/checkpoints", "Empty: `checkpoints` in `run.folder`.");
    KEY(checkpoint, resume, resume_mode,
        "`auto`: go on from the newest good checkpoint; `none`: start at step 0, in a folder without "
        "checkpoints.");

    KEY(parallel, tp, integer, {1, 4096},
        "Ranks that divide every layer by heads and GLU columns; must divide both.");
    KEY(parallel, cp, integer, {1, 4096}, "Ranks that divide every sequence into chunks, of any lengths.");
    KEY(parallel, pp, integer, {1, 4096}, "Ranks that divide the layers into stages.");
    KEY(parallel, virtual_stages, integer, {1, 4096},
        "Stages per pipeline rank: more make the pipeline's idle share smaller and its messages more.");
    KEY(parallel, zero, integer, {0, 3},
        "ZeRO: what data-parallel ranks keep in shares instead of whole. 0: nothing; 1: optimizer state, "
        "which "
        "saves memory and time; 2: gradients too; 3: parameters too, gathered layer by layer. The results "
        "are "
        "the same.");
    KEY(parallel, reshard_after_forward, boolean,
        "With `zero: 3`: give a layer's parameters back after its forward pass and gather them again for its "
        "backward pass. `false`: gather them once an update, whatever its micro-batches, which needs memory "
        "for "
        "all of them, and is what `zero: 2` does.");
    KEY(parallel, bucket_mib, integer, {1, 4096}, "Gradients are reduced in buckets of this many MiB.");
    KEY(parallel, gradient_dtype, choice<StoredType>,
        "Type of gradients on their way between data-parallel ranks. `bf16`: half the traffic, for a "
        "rounding of what each rank adds and of the sum; micro-batches are still added up in f32. Where an "
        "update has one, a bf16 model forms its gradients as bf16 (also on one rank), which is the same "
        "rounding and takes half the memory.");
    KEY(parallel, copy_engines, choice<CopyEngineGroups>,
        "Groups of GPUs of one host whose large gradients, parameters, states and (two ranks) "
        "tensor-parallel "
        "products travel over the copy engines, which leaves the multiprocessors to the computation and "
        "takes "
        "32 to 320 MiB of each GPU. `pairs`: groups of two; more ranks, whatever is small and everything "
        "between hosts go over NCCL.");
    KEY(parallel, sequence_scatter, boolean,
        "Between blocks each tensor-parallel rank keeps its share of the tokens, all-gather and "
        "reduce-scatter in place of all-reduce: less memory, norms and residual additions divided. Needs "
        "`tp` of 2 or more.");
    KEY(parallel, overlap_chunks, integer, {0, 16},
        "Tensor-parallel collectives go out in up to this many chunks of tokens, of 16 MiB or more, each "
        "while "
        "the next one is multiplied. 0: 4 between two GPUs whose copy engines carry them (1 with "
        "`two_batch_overlap`), else 1.");
    KEY(parallel, two_batch_overlap, choice<Switch>,
        "A micro-batch goes through the tensor-parallel layers as two halves of whole sequences (or packed "
        "documents), block by block in turn, so that the sum which ends a block of one half travels during a "
        "block of the other. Needs two sequences or more; not with `cp`, `sequence_scatter` or "
        "`trainer.recompute: full`. `auto`: where that is so, on GPUs.");
    KEY(parallel, hierarchical, boolean,
        "CPU ranks on several hosts, equally many on each: data-parallel ranks sum inside their host first, "
        "and only "
        "the sums cross the network. NCCL finds its way through the hosts itself.");

    KEY(log, tensorboard, boolean, "Write TensorBoard event files to `run.folder`.");
    KEY(log, report, boolean, "Write report.html to `run.folder` at the end.");
    KEY(log, communication, boolean,
        "With several ranks, measure how long communication takes and how much of it nothing hides: "
        "`comm_ms`, "
        "`exposed_comm_ms` and the latter by axis in metrics.jsonl.");
}

// Levenshtein distance.
size_t edits(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t above = row[j];
            row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
            diagonal = above;
        }
    }
    return row[b.size()];
}

}  // namespace

const std::vector<SchemaSection>& schema_sections() {
    static const std::vector<SchemaSection> sections = {
        {"run", "Where the run lives."},
        {"model", "The language model. Defaults marked by family depend on `model.family`."},
        {"data", "What it is trained on."},
        {"trainer", "How long, how much at a time, on what."},
        {"optimizer", "AdamW with decoupled weight decay."},
        {"schedule", "The learning rate over the steps."},
        {"checkpoint", "What is saved and when."},
        {"parallel",
         "How the ranks of an MPI job share the work. Data parallelism takes all ranks that the other "
         "kinds leave: dp = ranks / (tp * cp * pp)."},
        {"log", "What is written besides metrics.jsonl."},
    };
    return sections;
}

const std::vector<SchemaKey>& schema() {
    static const std::vector<SchemaKey> all = [] {
        std::vector<SchemaKey> keys;
        add_run(keys);
        add_model(keys);
        add_data(keys);
        add_trainer(keys);
        add_rest(keys);
        return keys;
    }();
    return all;
}

const SchemaKey* find_key(const std::string& path) {
    for (const SchemaKey& key : schema())
        if (key.path() == path) return &key;
    return nullptr;
}

std::string nearest_key(const std::string& path) {
    const std::string name = path.substr(path.rfind('.') + 1);
    std::string best;
    size_t least = std::string::npos;
    for (const SchemaKey& key : schema()) {
        // A right name in a wrong section is one mistake, however long the section's name.
        const size_t distance = std::min(2 * edits(path, key.path()), 2 * edits(name, key.name) + 1);
        if (distance < least) {
            least = distance;
            best = key.path();
        }
    }
    return best;
}

}  // namespace levin
