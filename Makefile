# The short way to everything; `make help` lists it. CMake does the work (CMakePresets.json).
export PROMPT ?= What is 12 + 30?
PREFIX ?= /usr/local
# Of each fuzz target, in seconds.
FUZZ_SECONDS ?= 20

DEPS := scripts/install_deps.sh
EXO := build/release/exo
# A preset is configured once; its build files follow changes by themselves.
configure = [ -e build/$(1)/build.ninja ] || cmake --preset $(1)
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help build run test check lint format asan tsan fuzz bench install package clean

help: ## what there is
	sed -nE 's/^([a-z ]+):.*## (.*)/  make \1@\2/p' $(MAKEFILE_LIST) | column -t -s @

build: ## the program, in build/release/exo
	$(DEPS) build test
	$(call configure,release)
	cmake --build --preset release

run: build ## a model's answer to PROMPT="..."
	scripts/run_model.sh "$$PROMPT"

check: build ## the release build's tests alone
	ctest --preset release

test: build ## every test there is: the release build's, lint, asan, tsan, fuzz
	$(DEPS) lint fuzz
	ctest --preset all

lint: ## clang-format and clang-tidy, changing nothing
	$(DEPS) build lint
	scripts/lint.sh format
	scripts/lint.sh tidy

format: ## rewrite the C++ files as clang-format has them
	$(DEPS) lint
	scripts/lint.sh format --fix

asan tsan: ## the tests under the address (and undefined) or the thread sanitizer
	$(DEPS) build test
	$(call configure,$@)
	cmake --build --preset $@
	ctest --preset $@

fuzz: ## each libFuzzer target for FUZZ_SECONDS=20
	$(DEPS) build fuzz
	$(call configure,fuzz)
	cmake --build --preset fuzz
	scripts/fuzz.sh $(FUZZ_SECONDS)

bench: ## the kernels' benchmarks
	$(DEPS) build test
	cmake --preset release -DEXO_BUILD_BENCH=ON
	cmake --build --preset release --target kernels_bench matmul_bench
	build/release/bench/matmul_bench
	build/release/bench/kernels_bench

install: build ## into PREFIX=/usr/local
	cmake --install build/release --prefix "$(PREFIX)"

package: build ## a Debian package of the program, one of the library, in build/release
	$(DEPS) package
	cd build/release && cpack

clean: ## forget everything built
	rm -rf build
