# Sourced by the scripts next to it: the folder of everything that is kept between runs, outside the source tree.
cache=${WEIR_CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/weir/cluster}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd -P)
cache_key() { cat "$@" | sha256sum | cut -c1-12; } # files: a short name for what they hold
