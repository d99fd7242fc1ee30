# Debian packages with `cpack` in the build folder: exo (the program, its model, manual, completions) and exo-dev (the
# library). Which shared libraries they need, dpkg-shlibdeps finds out.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME exo)
set(CPACK_PACKAGE_VENDOR "the exo.cpp authors")
set(CPACK_PACKAGE_CONTACT "the exo.cpp authors <authors@exo-cpp.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "runs DeepSeek models on the machines you have")
set(CPACK_RESOURCE_FILE_LICENSE ${CMAKE_SOURCE_DIR}/LICENSE)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_ALL exo exo-dev)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_EXO_PACKAGE_NAME exo)
set(CPACK_DEBIAN_EXO_PACKAGE_SECTION science)
set(CPACK_COMPONENT_EXO_DESCRIPTION
    "exo runs models of the DeepSeek architecture (V2, V3, R1, Moonlight, Kimi-K2)\nfrom their official safetensors \
checkpoints, on the CPU, and comes with a small\nmodel to try.")
set(CPACK_DEBIAN_EXO-DEV_PACKAGE_NAME exo-dev)
set(CPACK_DEBIAN_EXO-DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_EXO-DEV_PACKAGE_DEPENDS
    "libfmt-dev, libspdlog-dev, nlohmann-json3-dev, libhwy-dev, libpcre2-dev, libxxhash-dev, libhwloc-dev")
set(CPACK_DEBIAN_EXO-DEV_DESCRIPTION "Headers, static libraries and the CMake package exo: the rooms of exo.cpp as\n\
libraries, with the three stages of a model, tokenizer, operations and kernels.")
set(CPACK_COMPONENT_EXO-DEV_DESCRIPTION ${CPACK_DEBIAN_EXO-DEV_DESCRIPTION})
include(CPack)
