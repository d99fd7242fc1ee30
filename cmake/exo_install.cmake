# What `cmake --install` lays down: the program with its shipped models, manual page and completions (component exo);
# headers, static libraries and the CMake package exo (component exo-dev: find_package(exo), targets exo::<room>).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# The part of a room: its library in the export set, its headers under include/exo/. The command line is no library.
function(exo_install_room name target)
  if(name STREQUAL "cli")
    return()
  endif()
  set_target_properties(exo_${target} PROPERTIES EXPORT_NAME ${target})
  install(TARGETS exo_${target} EXPORT exoTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}/exo COMPONENT exo-dev)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/src/${name}/*.h)
  list(FILTER headers EXCLUDE REGEX "(/test_[a-z_]+\\.h|/testing/.*)$")
  foreach(header ${headers})
    get_filename_component(folder ${header} DIRECTORY)
    install(FILES ${CMAKE_SOURCE_DIR}/src/${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/exo/${folder}
            COMPONENT exo-dev)
  endforeach()
endfunction()

# Manual page and completions, made from the built program's own --help. A sanitizer's build has no need of them.
function(exo_install_cli_docs)
  find_package(Python3 COMPONENTS Interpreter)
  if(NOT Python3_Interpreter_FOUND OR NOT EXO_SANITIZE STREQUAL "" OR CMAKE_CROSSCOMPILING)
    return()
  endif()
  set(docs ${CMAKE_BINARY_DIR}/cli_docs)
  add_custom_command(
    OUTPUT ${docs}/exo.1.gz
    COMMAND Python3::Interpreter ${CMAKE_SOURCE_DIR}/packaging/cli_docs.py $<TARGET_FILE:exo> ${docs}
    DEPENDS exo ${CMAKE_SOURCE_DIR}/packaging/cli_docs.py ${CMAKE_SOURCE_DIR}/packaging/exo.1.in
    VERBATIM)
  add_custom_target(exo_cli_docs ALL DEPENDS ${docs}/exo.1.gz)
  install(FILES ${docs}/exo.1.gz DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT exo)
  install(FILES ${docs}/exo.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME exo
          COMPONENT exo)
  install(FILES ${docs}/_exo DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions COMPONENT exo)
  install(FILES ${docs}/exo.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d COMPONENT exo)
endfunction()

# Everything else; called once, after the rooms and the program.
function(exo_install)
  install(TARGETS exo RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT exo)
  install(DIRECTORY ${CMAKE_SOURCE_DIR}/models/tiny DESTINATION ${CMAKE_INSTALL_DATADIR}/exo/models COMPONENT exo)

  exo_install_cli_docs()
  # What Debian asks of a package: licence and changes.
  execute_process(COMMAND gzip -9nc ${CMAKE_SOURCE_DIR}/packaging/changelog
                  OUTPUT_FILE ${CMAKE_BINARY_DIR}/changelog.gz COMMAND_ERROR_IS_FATAL ANY)
  foreach(package exo exo-dev)
    install(FILES ${CMAKE_SOURCE_DIR}/packaging/copyright ${CMAKE_BINARY_DIR}/changelog.gz
            DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${package} COMPONENT ${package})
  endforeach()

  set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/exo)
  install(EXPORT exoTargets NAMESPACE exo:: DESTINATION ${package_dir} COMPONENT exo-dev)
  configure_package_config_file(${CMAKE_SOURCE_DIR}/cmake/exoConfig.cmake.in ${CMAKE_BINARY_DIR}/exoConfig.cmake
                                INSTALL_DESTINATION ${package_dir})
  write_basic_package_version_file(${CMAKE_BINARY_DIR}/exoConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${CMAKE_BINARY_DIR}/exoConfig.cmake ${CMAKE_BINARY_DIR}/exoConfigVersion.cmake
          DESTINATION ${package_dir} COMPONENT exo-dev)
endfunction()
