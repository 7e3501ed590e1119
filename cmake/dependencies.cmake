# Foreign libraries, each as one interface target. Debian's package names: scripts/packages.txt.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)

function(foresight_pkg target module)
  pkg_check_modules(${target} REQUIRED IMPORTED_TARGET ${module})
  add_library(${target} INTERFACE)
  target_link_libraries(${target} INTERFACE PkgConfig::${target})
endfunction()

foresight_pkg(dep_yaml yaml-0.1)
foresight_pkg(dep_jansson jansson)
foresight_pkg(dep_xxhash libxxhash)
foresight_pkg(dep_zstd libzstd)
foresight_pkg(dep_pcre2 libpcre2-8)
foresight_pkg(dep_utf8proc libutf8proc)
foresight_pkg(dep_gmp gmp)
foresight_pkg(dep_hdf5 hdf5)
foresight_pkg(dep_hwloc hwloc)

find_package(MPI REQUIRED COMPONENTS C)
add_library(dep_mpi INTERFACE)
target_link_libraries(dep_mpi INTERFACE MPI::MPI_C)
