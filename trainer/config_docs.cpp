// docs/config.md from the schema.
#include <fmt/format.h>

#include "trainer/schema.h"

namespace levin {
namespace {

std::string cell(const std::string& text) {
    std::string escaped;
    for (const char c : text) {
        if (c == '|') escaped += '\\';  // a bar would end the table's cell
        escaped += c;
    }
    return escaped;
}

std::string shown(const std::string& value) {
    return value == "\"\"" || value == "[]" ? "empty" : "`" + value + "`";
}

// The default, or one for each family where they differ.
std::string default_text(const SchemaKey& key) {
    const auto of = [&](Family family) {
        Config config;
        config.model = ModelConfig::of(family);
        return shown(key.write(config));
    };
    const std::string tnl = of(Family::tnl), tnl3 = of(Family::tnl3), transformer = of(Family::transformer);
    if (key.name == "family" || (tnl == tnl3 && tnl == transformer)) return tnl;
    if (tnl == tnl3) return fmt::format("{}, transformer {}", tnl, transformer);
    return fmt::format("tnl {}, tnl3 {}, transformer {}", tnl, tnl3, transformer);
}

}  // namespace

std::string config_markdown() {
    std::string text =
        "# Configuration\n\n"
        "Generated from the schema by `levin config docs`; do not edit by hand.\n\n"
        "`levin train CONFIG [key=value ..]` reads the YAML file CONFIG and then the overrides in order, so "
        "that the "
        "last one wins. In the file a key stands under its section (`trainer:`, then `  steps: 1000`) or in "
        "full "
        "(`trainer.steps: 1000`); an override gives it in full: `trainer.steps=1000`, "
        "`model.mixer=[lightning,softmax]`."
        "\n\n"
        "`base: other.yaml`, at the top level of a file, reads another file first (a path relative to this "
        "file, or a "
        "list of them, later ones above earlier ones); the keys of this file then stand above it. A key "
        "replaces the "
        "whole value, lists too.\n\n"
        "Unknown keys, wrong types and impossible combinations end with exit status 2 and the place of the "
        "mistake, "
        "before anything is allocated. `levin config show CONFIG [key=value ..]` prints the resolved "
        "configuration, "
        "which a run saves as config.yaml in its folder.\n";
    for (const SchemaSection& section : schema_sections()) {
        text += fmt::format("\n## {}\n\n{}\n\n| key | value | default | what it does |\n|---|---|---|---|\n",
                            section.name, section.documentation);
        for (const SchemaKey& key : schema()) {
            if (key.section != section.name) continue;
            const std::string value =
                key.range.empty() ? key.type : fmt::format("{}, {}", key.type, key.range);
            text += fmt::format("| `{}` | {} | {} | {} |\n", key.path(), cell(value), cell(default_text(key)),
                                cell(key.documentation));
        }
    }
    return text;
}

}  // namespace levin
