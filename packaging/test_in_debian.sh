#!/usr/bin/env bash
# The Debian package on a fresh Debian 12: makes one in a folder with debootstrap, installs the package that `make
# package` made, runs it as an ordinary user, removes it again. As root; needs debootstrap, lintian and Debian's mirror,
# and is no part of `make test` for that.
#
#   packaging/test_in_debian.sh BUILD_FOLDER ROOT_FOLDER [--dev]
#
# ROOT_FOLDER: made if it isn't there; a second run uses it again. --dev also installs exo-dev with a compiler, and
# builds and runs examples/ there.
set -euo pipefail
build=$(realpath "$1") root=$(realpath -m "$2") dev=${3:-}
here=$(cd "$(dirname "$0")/.." && pwd)

step() { echo "== $*" >&2; }
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
user() { chroot --userspec=1000:1000 "$root" /usr/bin/env -i PATH=/usr/bin:/bin LANG=C.UTF-8 HOME=/srv/person "$@"; }
# Shows what comes, and wants a line that matches.
expect() { tee >(cat >&2) | grep -e "$1" >/dev/null || { echo "expected '$1'" >&2; exit 1; }; }

step "lintian"
mapfile -t packages < <(ls "$build"/exo_*.deb "$build"/exo-dev_*.deb)
lintian --fail-on error,warning "${packages[@]}"

if [[ ! -e $root/usr/bin/apt-get ]]; then
  step "debootstrap into $root"
  debootstrap --variant=minbase bookworm "$root" >&2
fi
trap 'umount "$root/proc" 2>/dev/null || true' EXIT
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
mkdir -p "$root/srv/person" "$root/packages"
chown 1000:1000 "$root/srv/person"
cp "${packages[@]}" "$root/packages/"

step "install"
inside apt-get update -qq
inside sh -c 'apt-get install -y -qq --no-install-recommends /packages/exo_*.deb' >&2

step "exo, as an ordinary user"
user exo version
user exo run tiny --prompt 'What is 12 + 30?' --greedy --max-generate-tokens 80 | expect '</think>'
user exo run --prompt 'Hello' --greedy --max-generate-tokens 4 >/dev/null # tiny is what runs without MODEL
user exo models list | expect '^deepseek-v3 '
user exo convert tiny --verify
user sh -c 'cd; echo "[1, 2, 3]" > ids.json; exo logits tiny --tokens ids.json --out l.safetensors --compute fp32; rm ids.json'
for file in man/man1/exo.1.gz bash-completion/completions/exo zsh/vendor-completions/_exo \
  fish/vendor_completions.d/exo.fish doc/exo/copyright exo/models/tiny/tokenizer.json; do
  [[ -s $root/usr/share/$file ]] || { echo "no /usr/share/$file" >&2; exit 1; }
done

if [[ $dev == --dev ]]; then
  step "exo-dev: examples/ built there"
  inside sh -c 'apt-get install -y -qq --no-install-recommends /packages/exo-dev_*.deb g++ cmake ninja-build' >&2
  rm -rf "$root/srv/person/examples"
  cp -r "$here/examples" "$root/srv/person/examples"
  chown -R 1000:1000 "$root/srv/person/examples"
  user sh -c 'cd /srv/person && cmake -S examples -B examples/build -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null &&
    cmake --build examples/build' >&2
  user /srv/person/examples/build/example_mlp int8
fi

step "removed again"
inside apt-get purge -y -qq exo >&2
[[ ! -e $root/usr/bin/exo && ! -e $root/usr/share/exo ]] || { echo "something is left of exo" >&2; exit 1; }
echo "the package installs, runs and goes on $(inside cat /etc/debian_version)"
