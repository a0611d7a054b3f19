# cmake -DOUTPUT=x.cpp -DFILES="a.py;b.py" -P embed.cmake: writes the files into a C++ array of (name, text).
set(body "")
foreach(file ${FILES})
  get_filename_component(name ${file} NAME)
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "\\\\x\\1" text "${hex}")
  # Lines of 32 bytes: compilers limit the length of one literal, not of adjacent ones joined.
  string(REGEX REPLACE "(................................................................................................................................)"
                       "\\1\"\n    \"" text "${text}")
  file(SIZE ${file} bytes)
  string(APPEND body "    {\"${name}\", std::string_view(\n    \"${text}\", ${bytes})},\n")
endforeach()
file(WRITE ${OUTPUT} "#include \"checkpoint/remote_code.h\"\n\nnamespace levin {\n\nconst std::vector<std::pair<std::string_view, std::string_view>>& remote_code() {\n    static const std::vector<std::pair<std::string_view, std::string_view>> files{\n${body}    };\n    return files;\n}\n\n}  // namespace levin\n")
