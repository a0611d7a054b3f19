// The typed schema of the configuration: every key once, with how it is read, checked, written and explained.
#pragma once

#include <yaml-cpp/yaml.h>

#include <functional>
#include <string>
#include <vector>

#include "trainer/config.h"

namespace levin {

// A value together with the place it was written at: "file:line:column" or "override 'trainer.steps=5'".
struct ConfigValue {
    YAML::Node node;
    std::string key;    // dotted, e.g. "trainer.steps"
    std::string file;   // empty for an override
    std::string where;  // of the value

    // The same place with another node of the same document (an element of a list).
    ConfigValue at(const YAML::Node& child) const;
};

struct SchemaKey {
    std::string section, name;
    std::string type;           // "integer", "one of `cpu`, `cuda`", ..
    std::string range;          // "1 to 100", empty when the type says all
    std::string example;        // a value that works, as YAML
    std::string documentation;  // Markdown, one paragraph
    bool plain_text =
        false;  // an override's value is taken as it stands, unless it begins with one of [ { " '
    std::function<void(Config&, const ConfigValue&)> read;  // throws Error(input)
    std::function<std::string(const Config&)> write;        // as YAML, flow style

    std::string path() const { return section + "." + name; }
};

struct SchemaSection {
    std::string name, documentation;
};

const std::vector<SchemaSection>& schema_sections();
const std::vector<SchemaKey>& schema();
// nullptr when there is no such key.
const SchemaKey* find_key(const std::string& path);
// The valid key that is fewest edits away from `path`; a misplaced key is found by its name.
std::string nearest_key(const std::string& path);

// "file:line:column" of a node.
std::string place_of(const std::string& file, const YAML::Mark& mark);

}  // namespace levin
