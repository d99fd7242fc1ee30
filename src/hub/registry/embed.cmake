# Turns registry/*.json into one source of string literals: the configs that the binary carries.
file(GLOB configs CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.json)
set_property(DIRECTORY ${CMAKE_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${configs})
set(entries "")
foreach(config ${configs})
  get_filename_component(name ${config} NAME_WLE)
  file(READ ${config} text)
  string(APPEND entries "    {\"${name}\", R\"json(${text})json\"},\n")
endforeach()
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/registry_configs.cc @ONLY CONTENT
"// Made by src/hub/registry/embed.cmake from the files beside it.
#include \"hub/registry.h\"

namespace exo::hub {

std::span<const EmbeddedConfig> embedded_configs() {
  static constexpr EmbeddedConfig kConfigs[] = {
@entries@  };
  return kConfigs;
}

}  // namespace exo::hub
")
target_sources(exo_hub PRIVATE ${CMAKE_BINARY_DIR}/generated/registry_configs.cc)
