#include <functional>
#include <utility>

#include "cli/args_internal.h"

namespace exo::cli {
namespace {

enum Takes : unsigned {
  kModel = 1,
  kRunning = 2,  ///< isa, threads, chunk, compute
  kContextSize = 4,
  kThreadList = 8,  ///< --threads is the command's own
};

void add_model(CLI::App& command, std::string& model) {
  command.add_option(
      "MODEL", model,
      "registry id, Hugging Face repo id or folder; left out: $DEEPSEEK_V3_HF_MODEL, else tiny");
}

void add_model_options(CLI::App& command, ModelOptions& model, unsigned takes) {
  if ((takes & kModel) != 0) add_model(command, model.model);
  command.add_option("--format", model.format,
                     "weights as bf16, fp8, int8 or int4, or by role: int4,attention=int8,"
                     "lm_head=bf16 (default: what the checkpoint has)");
  if ((takes & kContextSize) != 0)
    command.add_option("--context", model.context, "tokens that a sequence may hold")
        ->check(whole_number(1));
  if ((takes & kRunning) == 0) return;
  command
      .add_option_function<std::string>(
          "--compute", [&model](const std::string& mode) { model.fp32_compute = mode == "fp32"; },
          "native: the format's fast path (default); fp32: activations and sums in fp32")
      ->check(CLI::IsMember({"native", "fp32"}));
  command
      .add_option("--kv-cache", model.kv_cache,
                  "the context's cache as bf16, int8, fp8 or fp32 (default: bf16, with --compute "
                  "fp32 fp32)")
      ->check(CLI::IsMember({"bf16", "int8", "fp8", "fp32"}));
  command.add_option("--chunk", model.chunk, "prompt tokens of one forward; 0: all at once")
      ->check(whole_number(0));
  command.add_option("--isa", model.isa,
                     "reference, avx2, avxvnni, avx512, avx512bf16, amx, neon (default: the best)");
  if ((takes & kThreadList) == 0)
    command.add_option("--threads", model.threads, "threads (default: all this process may use)")
        ->check(CLI::Range(0, 4096));
  command.add_option("--plan", model.plan_file, "a file of `exo plan --json`: exactly this plan");
  command.add_flag("--warm", model.warm, "read all weights into memory before the first token");
  command.add_flag("--overcommit", model.overcommit,
                   "run although the plan exceeds this machine's memory");
}

void add_sampling(CLI::App& command, SamplingFlags& sampling) {
  const std::string group =
      "Sampling, in this order (defaults: generation_config.json of the model)";
  const auto add = [&](const char* name, auto& value, const char* text) {
    return command.add_option(name, value, text)->group(group);
  };
  command.add_flag("--greedy", sampling.greedy, "always the most probable token")->group(group);
  add("--logit-bias", sampling.logit_bias, "ID=BIAS, added to a token's logit (repeatable)");
  add("--repetition-penalty", sampling.repetition_penalty,
      "divides logits of tokens seen (1: off)");
  add("--presence-penalty", sampling.presence_penalty, "taken off tokens of the answer");
  add("--frequency-penalty", sampling.frequency_penalty, "the same, for each time they came");
  add("--temperature,--temp", sampling.temperature, "0: greedy");
  add("--top-k", sampling.top_k, "only the k most probable (0: off)")->check(whole_number(0));
  add("--top-p", sampling.top_p, "only the most probable that reach this share together");
  add("--min-p", sampling.min_p, "only those at least this share of the most probable");
  add("--typical-p", sampling.typical_p,
      "only those of the most typical surprise that reach this share together (1: off)");
  add("--seed", sampling.seed, "the same seed gives the same text (default: a new one)")
      ->check(whole_number(0));
  add("--stop", sampling.stops, "text that ends the answer and isn't shown (repeatable)");
}

void add_run(CLI::App& command, RunOptions& run) {
  add_model_options(command, run.model, kModel | kRunning | kContextSize);
  command.add_option("--prompt,-p", run.prompt, "answer this once; without it: a chat");
  command.add_option("--prompt-file", run.prompt_file, "the prompt from a file (-: stdin)")
      ->excludes("--prompt");
  command.add_flag("--raw", run.raw, "no chat format: the model goes on from BOS and the text");
  command.add_option("--tokenizer", run.tokenizer, "folder of another tokenizer.json");
  command.add_option("--chat-format", run.chat_format,
                     "deepseek-v2, deepseek-v3, deepseek-r1, deepseek-r1-0528, deepseek-v3.1 "
                     "(default: the model's own template)");
  command.add_flag_callback(
      "--think", [&run] { run.thinking = true; }, "reason first, where the model has the switch");
  command.add_flag_callback(
      "--no-think", [&run] { run.thinking = false; }, "answer at once");
  command.add_flag("--hide-thinking", run.hide_thinking, "don't show the reasoning");
  command.add_flag("--ignore-eos", run.ignore_eos, "don't end at the end-of-answer token");
  command.add_flag("--json", run.json, "one JSON document instead of text (with --prompt)");
  add_sampling(command, run.sampling);
  command.footer(
      "Examples:\n"
      "  exo run tiny --prompt 'Once upon a time' --raw --greedy --max-generate-tokens 24\n"
      "  exo run tiny --prompt 'Tell a story.' --temperature 0.8 --seed 7 --max-generate-tokens "
      "24\n"
      "  exo run tiny --prompt-file THIRD_PARTY.md --raw --json --max-generate-tokens 8\n"
      "  exo run --inference-engine dummy --prompt 'Are you there?'\n"
      "Without --prompt: a chat, with /help, history, editing; Ctrl-C stops an answer.");
}

void add_convert(CLI::App& command, ConvertOptions& convert) {
  add_model_options(command, convert.model, kModel);
  command.add_option("--threads", convert.model.threads, "threads")->check(CLI::Range(0, 4096));
  command.add_flag("--force", convert.force, "convert again, even if a whole cache is there");
  command.add_flag("--verify", convert.verify, "read the cache and compare every checksum");
  command.footer(
      "Examples:\n"
      "  exo convert tiny\n"
      "  exo convert tiny --verify\n"
      "An interrupted conversion goes on where it was. The cache's folder is printed on stdout.");
}

void add_plan(CLI::App& command, PlanOptions& plan) {
  add_model_options(command, plan.model, kModel | kRunning | kContextSize);
  command.add_flag("--json", plan.json, "every config, shape, type, byte count and placement");
  command.footer(
      "Examples:\n"
      "  exo plan deepseek-v3\n"
      "  exo plan deepseek-v3 --format fp8 --context 32768 --json\n"
      "  exo plan kimi-k2-instruct\n"
      "Only config.json is read; a registry id needs nothing on disk.");
}

void add_logits(CLI::App& command, LogitsOptions& logits) {
  add_model_options(command, logits.model, kModel | kRunning | kContextSize);
  command.add_option("--tokens", logits.tokens_file, "a JSON array of token ids (-: stdin)")
      ->required();
  command.add_option("--out", logits.out_file, "safetensors file to write")->required();
  command
      .add_option("--greedy", logits.n_greedy, "then N greedy tokens: greedy.ids, greedy.logits")
      ->check(whole_number(0));
  command
      .add_option("--positions", logits.positions,
                  "logits of these positions alone: P,Q,... (default: all)")
      ->delimiter(',')
      ->check(whole_number(0));
  command.add_option("--capture", logits.captures,
                     "inner tensors whose name matches, * and ? as in a shell (repeatable): "
                     "'layers.0.self_attn.*'");
  command.footer(
      "Examples:\n"
      "  exo logits tiny --tokens ids.json --out logits.safetensors\n"
      "  exo logits tiny --tokens ids.json --out logits.safetensors --greedy 8 --compute fp32\n"
      "  exo logits tiny --tokens ids.json --out inner.safetensors --capture 'layers.0.*'\n"
      "OUT is written whole or not at all. No tokenizer is needed.");
}

void add_tokenize(CLI::App& command, TokenizeOptions& tokenize) {
  add_model(command, tokenize.model);
  command.add_flag("--decode", tokenize.decode, "from ids to text");
  command.footer(
      "stdin: JSON lines {\"text\"}; stdout: {\"ids\"}. With --decode {\"ids\", "
      "\"skip_special_tokens\"}\nto {\"text\"}. MODEL may be a folder with tokenizer files alone.\n"
      "Examples:\n"
      "  echo '{\"text\": \"Hello\"}' | exo tokenize tiny\n"
      "  echo '{\"ids\": [72, 105]}' | exo tokenize tiny --decode");
}

void add_render(CLI::App& command, RenderOptions& render) {
  add_model(command, render.model);
  command.add_option("--chat-format", render.chat_format,
                     "a format's name, instead of the model's");
  command.footer(
      "stdin: JSON lines {\"messages\", \"tools\", \"add_generation_prompt\", \"kwargs\"}; stdout: "
      "{\"prompt\", \"ids\"}.\nA registry id with nothing on disk gives the prompt alone.\n"
      "Examples:\n"
      "  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}' | exo render "
      "deepseek-r1");
}

void add_models(CLI::App& command, ModelsOptions& models) {
  command.require_subcommand(1);
  CLI::App* list = command.add_subcommand("list", "what is known, what is here, what fits");
  list->add_flag("--json", models.json, "as JSON");
  list->add_option("--memory", models.memory_gb, "count machines of this many GB instead of ours")
      ->check(CLI::Range(0.001, 1e9));
  list->callback([&models] { models.action = ModelsOptions::Action::list; });
  list->footer("Examples:\n  exo models list\n  exo models list --memory 64");
  CLI::App* info = command.add_subcommand("info", "everything about one");
  info->add_option("MODEL", models.model, "registry id, repo id or folder")->required();
  info->add_flag("--json", models.json, "as JSON");
  info->add_option("--memory", models.memory_gb, "count machines of this many GB instead of ours")
      ->check(CLI::Range(0.001, 1e9));
  info->callback([&models] { models.action = ModelsOptions::Action::info; });
  info->footer(
      "Examples:\n  exo models info deepseek-v3\n  exo models info kimi-k2-instruct --memory 128");
  CLI::App* remove = command.add_subcommand("rm", "remove a model's weight caches");
  remove->add_option("MODEL", models.model, "registry id, repo id or folder")->required();
  remove->add_flag("--yes,-y", models.yes, "don't ask");
  remove->callback([&models] { models.action = ModelsOptions::Action::remove; });
  remove->footer("The checkpoint itself is never touched.\nExamples:\n  exo models rm tiny --yes");
}

void add_perplexity(CLI::App& command, PerplexityOptions& perplexity) {
  add_model_options(command, perplexity.model, kModel | kRunning | kContextSize);
  command.add_option("--file", perplexity.text_file, "the text (-: stdin)")->required();
  command.add_option("--against", perplexity.against,
                     "a second model: KL divergence from it, and how often the best token agrees");
  command.add_option("--against-format", perplexity.against_format, "the second one's --format");
  command
      .add_option("--against-kv-cache", perplexity.against_kv_cache, "the second one's --kv-cache")
      ->check(CLI::IsMember({"bf16", "int8", "fp8", "fp32"}));
  command.add_option("--tokenizer", perplexity.tokenizer, "folder of another tokenizer.json");
  command.add_option("--tokens", perplexity.max_tokens, "only the text's first N tokens")
      ->check(whole_number(1));
  command.add_flag("--json", perplexity.json, "{\"perplexity\", \"n_tokens\", \"mean_nll\"}");
  command.footer(
      "Windows of --context tokens (default 2048) that don't overlap, each begun with BOS, which "
      "is not scored.\n"
      "Examples:\n"
      "  exo perplexity tiny --file README.md --context 256 --json\n"
      "  exo perplexity tiny --file README.md --tokens 500 --against tiny --compute fp32");
}

void add_verify(CLI::App& command, VerifyOptions& verify) {
  verify.model.fp32_compute = true;
  add_model_options(command, verify.model, kModel | kRunning);
  command.add_option("--reference", verify.reference,
                     "recorded outputs (default: reference.safetensors or goldens.safetensors "
                     "in MODEL's folder)");
  command.add_option("--report", verify.report_file, "write the report to this file, too");
  command.add_flag("--json", verify.json, "as JSON");
  command.footer(
      "Compares logits and inner tensors, layer by layer, and names the first place that parts.\n"
      "tools/make_reference.py makes a reference with transformers. Default: --compute fp32.\n"
      "Examples:\n"
      "  exo verify tiny --reference reference.safetensors");
}

void add_random_checkpoint(CLI::App& command, RandomCheckpointOptions& random) {
  command.add_option("FOLDER", random.folder, "to make")->required();
  command.add_option("--config", random.config,
                     "a config.json or a registry id (default: a small model)");
  command
      .add_option("--megabytes", random.megabytes, "about this size, by more layers and experts")
      ->check(CLI::Range(0, 1000000))
      ->excludes("--config");
  command.add_option("--seed", random.seed, "of the weights")->check(whole_number(0));
  command.footer(
      "An official-layout checkpoint of random weights: its text is noise, everything else is "
      "real.\n"
      "Examples:\n"
      "  exo random-checkpoint random\n"
      "  exo random-checkpoint random-20 --megabytes 20 --seed 2");
}

void add_bench(CLI::App& command, BenchCommandOptions& bench) {
  add_model_options(command, bench.model, kModel | kRunning | kContextSize | kThreadList);
  command
      .add_option("--threads", bench.threads,
                  "thread counts: N,M,... (default: all this process may use)")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  command.add_option("--random-weights", bench.random_weights,
                     "registry id or config.json: its shape with random weights");
  command.add_option("--layers", bench.layers, "with --random-weights: only so many layers")
      ->check(whole_number(1));
  command.add_option("--dense", bench.dense, "with --layers: so many of them dense")
      ->check(whole_number(0));
  command.add_option("--prefill", bench.prefill_tokens, "prompt lengths: N,M,...")
      ->delimiter(',')
      ->check(whole_number(1));
  command.add_option("--depth", bench.depths, "decode after so many tokens: N,M,...")
      ->delimiter(',')
      ->check(whole_number(0));
  command.add_option("--batch", bench.batches, "sequences decoded together: N,M,...")
      ->delimiter(',')
      ->check(whole_number(1));
  command.add_option("--steps", bench.decode_steps, "timed decode steps")->check(whole_number(1));
  command.add_option("--repeats", bench.repeats, "timed prefills of each length")
      ->check(whole_number(1));
  command.add_flag("--profile", bench.profile, "where the time goes, by operation");
  command.add_flag("--cold", bench.cold,
                   "time the load from the disk first, with nothing in memory");
  command.add_flag("--roofline", bench.roofline,
                   "only measure the machine, with 1, 2, 4, ... threads; no MODEL");
  command.add_flag("--json", bench.json, "one JSON document");
  command.footer(
      "Every speed is shown beside what this machine was measured to allow.\n"
      "Examples:\n"
      "  exo bench tiny --prefill 64 --steps 8\n"
      "  exo bench --random-weights deepseek-v2-lite --layers 2 --format int4 --prefill 64 --json\n"
      "  exo bench --roofline");
}

}  // namespace

void add_commands(CLI::App& app, Invocation& invocation) {
  const auto add = [&](const char* name, const char* text, Command id, auto build) {
    CLI::App* command = app.add_subcommand(name, text);
    command->fallthrough();  // exo's flags may follow the command
    command->final_callback([&invocation, id] { invocation.command = id; });
    build(*command);
  };
  Invocation& i = invocation;
  add("run", "one answer (--prompt), or a chat", Command::run,
      [&](CLI::App& c) { add_run(c, i.run); });
  add("models", "what is known, what is here, whether it fits", Command::models,
      [&](CLI::App& c) { add_models(c, i.models); });
  add("convert", "stage 1: a checkpoint into a weight cache", Command::convert,
      [&](CLI::App& c) { add_convert(c, i.convert); });
  add("plan", "stage 2: what a run will be, from config.json alone", Command::plan,
      [&](CLI::App& c) { add_plan(c, i.plan); });
  add("logits", "teacher-forced logits and inner tensors", Command::logits,
      [&](CLI::App& c) { add_logits(c, i.logits); });
  add("perplexity", "perplexity of a text; distance between two models", Command::perplexity,
      [&](CLI::App& c) { add_perplexity(c, i.perplexity); });
  add("verify", "compare a model with recorded outputs", Command::verify,
      [&](CLI::App& c) { add_verify(c, i.verify); });
  add("tokenize", "text to ids and back", Command::tokenize,
      [&](CLI::App& c) { add_tokenize(c, i.tokenize); });
  add("render", "messages to a prompt", Command::render,
      [&](CLI::App& c) { add_render(c, i.render); });
  add("bench", "speed, beside the machine's own limits", Command::bench,
      [&](CLI::App& c) { add_bench(c, i.bench); });
  add("random-checkpoint", "write a checkpoint of random weights", Command::random_checkpoint,
      [&](CLI::App& c) { add_random_checkpoint(c, i.random_checkpoint); });
  add("version", "the version of this build", Command::version, [](CLI::App&) {});
}

}  // namespace exo::cli
