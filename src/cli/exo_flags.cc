#include "cli/exo_flags.h"

#include <fmt/core.h>

#include <vector>

#include "cli/console.h"

namespace exo::cli {
namespace {

/// Flags given that set up a node's addresses.
std::vector<std::string_view> node_flags(const ExoFlags& exo) {
  std::vector<std::string_view> names;
  const auto add = [&](bool given, std::string_view name) {
    if (given) names.push_back(name);
  };
  add(exo.node_id.has_value(), "--node-id");
  add(exo.node_host.has_value(), "--node-host");
  add(exo.node_port.has_value(), "--node-port");
  add(exo.listen_port.has_value(), "--listen-port");
  add(exo.broadcast_port.has_value(), "--broadcast-port");
  add(exo.chatgpt_api_port.has_value(), "--chatgpt-api-port");
  return names;
}

}  // namespace

Status check_exo_flags(const Context& context, Command command) {
  const ExoFlags& exo = context.exo;
  if (exo.wait_for_peers.value_or(0) > 0)
    return unimplemented(fmt::format(
        "--wait-for-peers {}: this build has no cluster yet, so no peer would ever come; leave it "
        "out to run on this machine alone",
        *exo.wait_for_peers));
  if (exo.discovery_module)
    return unimplemented(
        fmt::format("--discovery-module {}: this build has no cluster yet; leave it out to run on "
                    "this machine alone",
                    *exo.discovery_module));
  if (exo.default_temp && !(*exo.default_temp >= 0 && *exo.default_temp <= 100))
    return invalid_argument(fmt::format("--default-temp {}: expected 0 to 100", *exo.default_temp));
  if (command == Command::node) return ok_status();
  for (std::string_view name : node_flags(exo))
    say(
        fmt::format("exo: {} has no effect here: this command runs on this machine alone and "
                    "listens nowhere",
                    name));
  return ok_status();
}

Status node_command(const Context& context) {
  std::string flags;
  for (std::string_view name : node_flags(context.exo))
    flags += fmt::format("{}{}", flags.empty() ? " (" : ", ", name);
  if (!flags.empty()) flags += " given)";
  return unimplemented(fmt::format(
      "`exo` alone starts a node, with the API, the web page and the ring: this build has none of "
      "them yet{}; `exo run MODEL` chats, `exo --help` lists all commands",
      flags));
}

}  // namespace exo::cli
