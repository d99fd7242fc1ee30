#include "cli/args.h"

#include <fmt/core.h>

#include <charconv>
#include <cstdio>

#include "cli/args_internal.h"

namespace exo::cli {
namespace {

constexpr int kUsageExit = 2;

constexpr const char* kDescription =
    "exo runs DeepSeek models (V2, V3, R1, Moonlight, Kimi-K2) on the machines you have.\n"
    "\n"
    "  exo run MODEL --prompt TEXT    one answer\n"
    "  exo run MODEL                  a chat\n"
    "  exo models list                what is known, what is here, what fits\n"
    "\n"
    "MODEL is a registry id (deepseek-v3), a Hugging Face repo id (deepseek-ai/DeepSeek-V3) or a "
    "folder.";

}  // namespace

void add_exo_flags(CLI::App& app, ExoFlags& flags) {
  const std::string group = "exo's flags (valid with every command; docs/flags.md)";
  app.add_option("--inference-engine", flags.inference_engine,
                 "tinygrad (the native engine; CUDA=1 or CLANG=1 choose the device), mlx (Apple "
                 "silicon), or dummy (answers without a model)")
      ->check(CLI::IsMember({"tinygrad", "mlx", "dummy"}))
      ->group(group);
  app.add_option("--default-temp", flags.default_temp, "temperature where none is given")
      ->group(group);
  app.add_option("--max-generate-tokens", flags.max_generate_tokens, "longest answer, in tokens")
      ->check(whole_number(0))
      ->group(group);
  app.add_option("--system-prompt", flags.system_prompt, "system text of a chat")->group(group);
  app.add_flag("--disable-tui", flags.disable_tui, "plain lines: no progress bar, no colours")
      ->group(group);
  const std::string ring = "exo's flags of a ring and its API (need a node; refused without one)";
  app.add_option("--wait-for-peers", flags.wait_for_peers, "machines to wait for before running")
      ->check(whole_number(0))
      ->group(ring);
  app.add_option("--discovery-module", flags.discovery_module, "how peers are found")
      ->check(CLI::IsMember({"udp", "mdns", "manual", "tailscale"}))
      ->group(ring);
  app.add_option("--node-id", flags.node_id, "this node's name")->group(ring);
  app.add_option("--node-host", flags.node_host, "address this node listens on")->group(ring);
  const CLI::Range port(1, 65535);
  app.add_option("--node-port", flags.node_port, "port of the ring")->check(port)->group(ring);
  app.add_option("--listen-port", flags.listen_port, "port that discovery listens on")
      ->check(port)
      ->group(ring);
  app.add_option("--broadcast-port", flags.broadcast_port, "port that discovery calls on")
      ->check(port)
      ->group(ring);
  app.add_option("--chatgpt-api-port", flags.chatgpt_api_port, "port of the API (52415)")
      ->check(port)
      ->group(ring);
}

CLI::Validator whole_number(int64_t least) {
  const auto check = [least](const std::string& text) -> std::string {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && value >= least) return "";
    return fmt::format("'{}': expected a whole number from {} on", text, least);
  };
  return CLI::Validator(check, least > 0 ? "POSITIVE" : "NONNEGATIVE");
}

namespace {

struct Parser {
  CLI::App app{kDescription, "exo"};
  ParsedArgs result;
  Parser() {
    app.set_help_flag("-h,--help", "this text, or a command's");
    app.require_subcommand(0, 1);
    add_exo_flags(app, result.invocation.exo);
    result.invocation.command = Command::node;
    add_commands(app, result.invocation);
    app.footer("`exo COMMAND --help` has each command's options and examples.");
  }
};

}  // namespace

std::vector<std::string> command_names() {
  Parser parser;
  std::vector<std::string> names;
  for (const CLI::App* command : parser.app.get_subcommands(nullptr))
    names.push_back(command->get_name());
  return names;
}

ParsedArgs parse_args(int argc, const char* const* argv) {
  Parser parser;
  try {
    parser.app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // CLI11 prints help and messages itself; its own exit codes are its own.
    const bool is_help = error.get_exit_code() == 0;
    if (is_help) {
      parser.app.exit(error);
      parser.result.exit_code = 0;
      return parser.result;
    }
    std::string command = "exo";
    for (const CLI::App* chosen : parser.app.get_subcommands()) command += " " + chosen->get_name();
    fmt::print(stderr, "exo: {}\n`{} --help` shows what is expected.\n", error.what(), command);
    parser.result.exit_code = kUsageExit;
  }
  return parser.result;
}

}  // namespace exo::cli
