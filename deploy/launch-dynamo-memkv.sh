#!/usr/bin/env bash
# Starts a program of Dynamo with memkv as a backend of NIXL, and checks first what would fail late.
#
#   deploy/launch-dynamo-memkv.sh [options] -- command...
#
#   --servers HOST:PORT[,...]  memkv's servers; else MEMKV_SERVERS, or what MEMKV_CONFIG names
#   --plugin FILE              libplugin_MEMKV.so; else MEMKV_NIXL_PLUGIN, else the one beside this
#                              checkout's target/release
#   --nixl DIRECTORY           NIXL's folder of plug-ins; else the one of the NIXL that python3 imports
#   --python PROGRAM           that python3, where it is another
#   --no-ping                  do not ask whether the servers answer
#   --check                    do all of it but start the command
#
# It links the plug-in into NIXL's own folder (NIXL_PLUGIN_DIR would hide UCX and POSIX), sets
# DYN_KVBM_NIXL_BACKEND_MEMKV=true and MEMKV_SERVERS, and becomes the command.
# Exit codes: 2 the command line is wrong; 3 a check failed; else those of the command.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)

usage() {
    sed -n '2,/^set/{/^#/s/^# \?//p}' "$0"
}

wrong() {
    echo "launch-dynamo-memkv: $1; see --help" >&2
    exit 2
}

fail() {
    echo "launch-dynamo-memkv: $1" >&2
    exit 3
}

servers=${MEMKV_SERVERS:-}
plugin=${MEMKV_NIXL_PLUGIN:-}
folder=
python=python3
ping=yes
start=yes
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            usage
            exit 0
            ;;
        --servers | --plugin | --nixl | --python)
            [ $# -ge 2 ] || wrong "$1 wants a value"
            case $1 in
                --servers) servers=$2 ;;
                --plugin) plugin=$2 ;;
                --nixl) folder=$2 ;;
                --python) python=$2 ;;
            esac
            shift
            ;;
        --no-ping) ping=no ;;
        --check) start=no ;;
        --)
            shift
            break
            ;;
        *) wrong "there is no option $1" ;;
    esac
    shift
done
[ $# -gt 0 ] || [ "$start" = no ] || wrong "there is no command behind --"

# What memkv is told: its variables, or a file.
if [ -z "$servers" ] && [ -z "${MEMKV_CONFIG:-}" ]; then
    fail "no servers: name them with --servers, MEMKV_SERVERS or MEMKV_CONFIG"
fi
if [ -n "${MEMKV_CONFIG:-}" ] && [ ! -r "$MEMKV_CONFIG" ]; then
    fail "MEMKV_CONFIG names $MEMKV_CONFIG, which cannot be read"
fi

# KVBM ends the start over parameters of a backend, with a message that does not name them.
while IFS='=' read -r name _; do
    case $name in
        DYN_KVBM_NIXL_BACKEND_MEMKV) ;;
        DYN_KVBM_NIXL_BACKEND_MEMKV_*)
            fail "$name: Dynamo takes no parameters of backends; use MEMKV_CONFIG or MEMKV_*"
            ;;
        DYN_KVBM_NIXL_BACKEND | DYN_KVBM_REMOTE_STORAGE_TYPE)
            echo "launch-dynamo-memkv: $name is read by no release of Dynamo up to 1.6.1" >&2
            ;;
    esac
done < <(env)

if [ -z "$plugin" ]; then
    plugin=$here/target/release/libplugin_MEMKV.so
    [ -e "$plugin" ] ||
        fail "there is no $plugin: cargo build --release -p memkv-nixl, or name it with --plugin"
fi
[ -r "$plugin" ] || fail "the plug-in $plugin cannot be read"
plugin=$(cd "$(dirname "$plugin")" && pwd)/$(basename "$plugin")

if [ -n "${NIXL_PLUGIN_DIR:-}" ] && [ -z "$folder" ]; then
    folder=$NIXL_PLUGIN_DIR
fi
if [ -z "$folder" ]; then
    command -v "$python" >/dev/null ||
        fail "there is no $python to ask where NIXL is: name its plug-ins with --nixl"
    # The wheels' own layout; NIXL itself is not imported, which may want a GPU.
    folder=$("$python" - <<'PYTHON'
import glob
import sys

places = [p for path in sys.path for p in glob.glob(f"{path}/.nixl*.mesonpy.libs/plugins")]
print(places[0] if places else "")
PYTHON
    )
    [ -n "$folder" ] || fail "$python has no NIXL (pip install nixl): name its plug-ins with --nixl"
fi
[ -d "$folder" ] || fail "NIXL's folder of plug-ins $folder does not exist"
for stock in UCX POSIX; do
    [ -e "$folder/libplugin_$stock.so" ] ||
        echo "launch-dynamo-memkv: $folder has no $stock, which KVBM uses" >&2
done

linked=$folder/libplugin_MEMKV.so
if [ ! "$linked" -ef "$plugin" ]; then
    if [ -e "$linked" ] && [ ! -L "$linked" ]; then
        fail "$linked is another plug-in of that name: remove it, or name it with --plugin"
    fi
    ln -sfn "$plugin" "$linked" || fail "no link can be made in $folder"
fi

if [ "$ping" = yes ] && [ -n "$servers" ]; then
    IFS=',' read -ra list <<<"$servers"
    for server in "${list[@]}"; do
        # host:port*weight, perhaps with spaces around; 9900 where no port is named.
        address=${server//[[:space:]]/}
        address=${address%%\**}
        case $address in
            # A colon inside of brackets belongs to an IPv6 address.
            \[*\]) address=$address:9900 ;;
            *:*) ;;
            *) address=$address:9900 ;;
        esac
        host=${address%:*}
        port=${address##*:}
        host=${host#[}
        # shellcheck disable=SC2016 # the inner shell is to expand them
        timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "${host%]}" "$port" 2>/dev/null ||
            fail "nobody answers at $address; --no-ping starts all the same, with misses"
    done
fi

[ -z "$servers" ] || export MEMKV_SERVERS=$servers
export DYN_KVBM_NIXL_BACKEND_MEMKV=true
if [ "$start" = no ]; then
    echo "all well: $linked, MEMKV_SERVERS=${MEMKV_SERVERS:-as in $MEMKV_CONFIG}"
    exit 0
fi
exec "$@"
