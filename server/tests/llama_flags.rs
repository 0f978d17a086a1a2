//! What users of llama.cpp type, flag by flag: kept with its meaning, granted in silence, dropped with a warning, or
//! refused with a reason.

use std::path::Path;
use std::process::{Command, Stdio};

use clap::{CommandFactory, Parser};
use millpond_server::cli::args::{Cli, LoadMode, ReasoningName, RunArgs, ServeArgs, Verb};
use millpond_server::cli::argv::{self, CommandLine};

fn normal(line: &[&str]) -> CommandLine {
    let mut command = Cli::command();
    command.build();
    argv::normalize(&command, std::iter::once("millpond").chain(line.iter().copied()).map(Into::into))
}

fn parsed(line: &[&str]) -> Verb {
    let normal = normal(line);
    assert_eq!((&normal.ignored, &normal.refused), (&Vec::new(), &None), "{line:?}");
    Cli::try_parse_from(normal.arguments).unwrap_or_else(|error| panic!("{line:?}: {error}")).verb
}

type Check<T> = fn(&T) -> bool;

fn path(found: Option<&std::path::PathBuf>, expected: &str) -> bool {
    found.map(std::path::PathBuf::as_path) == Some(Path::new(expected))
}

/// Flags of llama-cli, and what they have to mean.
const RUN: &[(&[&str], Check<RunArgs>)] = &[
    (&["-m", "f.gguf"], |args| path(args.settings.model.model.as_ref(), "f.gguf")),
    (&["--model", "f.gguf"], |args| path(args.settings.model.model.as_ref(), "f.gguf")),
    (&["-hf", "o/n:Q4_K_M"], |args| args.settings.model.hf_repo.as_deref() == Some("o/n:Q4_K_M")),
    (&["-hfr", "o/n", "-hff", "f.gguf"], |args| args.settings.model.hf_file.as_deref() == Some("f.gguf")),
    (&["-hft", "t"], |args| args.settings.model.hub.hf_token.as_deref() == Some("t")),
    (&["--offline"], |args| args.settings.model.hub.offline),
    (&["-p", "Hello"], |args| args.prompt.as_deref() == Some("Hello")),
    (&["-p", "-ngl"], |args| args.prompt.as_deref() == Some("-ngl")),
    (&["-f", "p.txt"], |args| path(args.file.as_ref(), "p.txt")),
    (&["-sys", "Be brief."], |args| args.settings.system_prompt.as_deref() == Some("Be brief.")),
    (&["-sysf", "s.txt"], |args| path(args.settings.system_prompt_file.as_ref(), "s.txt")),
    (&["-cnv"], |args| args.chat),
    (&["-n", "64"], |args| args.settings.generation.predict == 64),
    (&["-n", "-1"], |args| args.settings.generation.predict == -1),
    (&["--n-predict", "-2"], |args| args.settings.generation.predict == -2),
    (&["--predict=7"], |args| args.settings.generation.predict == 7),
    (&["-c", "2048"], |args| args.settings.generation.ctx_size == 2048),
    (&["--ctx_size", "0"], |args| args.settings.generation.ctx_size == 0),
    (&["-t", "4"], |args| args.settings.compute.threads == 4),
    (&["--threads", "-1"], |args| args.settings.compute.threads == 0),
    (&["-tb", "8"], |args| args.settings.compute.threads_batch == 8),
    (&["--threads-batch", "-1"], |args| args.settings.compute.threads_batch == 0),
    (&["-b", "2048"], |args| args.settings.compute.batch_size == Some(2048)),
    (&["--ubatch-size", "512"], |args| args.settings.compute.ubatch_size == Some(512)),
    (&["-ub", "512"], |args| args.settings.compute.ubatch_size == Some(512)),
    (&["-ctk", "q8_0", "-ctv", "q8_0"], |args| {
        args.settings.compute.cache_type_k == args.settings.compute.cache_type_v
    }),
    (&["-s", "42"], |args| args.settings.sampling.seed == Some(42)),
    (&["--seed", "-1"], |args| args.settings.sampling.seed == Some(-1)),
    (&["--temp", "0.7"], |args| args.settings.sampling.temp == Some(0.7)),
    (&["--temperature", "0"], |args| args.settings.sampling.temp == Some(0.0)),
    (&["--top-k", "20"], |args| args.settings.sampling.top_k == Some(20)),
    (&["--top-p", "0.8"], |args| args.settings.sampling.top_p == Some(0.8)),
    (&["--min-p", "0.1"], |args| args.settings.sampling.min_p == Some(0.1)),
    (&["--typical", "0.9"], |args| args.settings.sampling.typical == Some(0.9)),
    (&["--typical-p", "0.9"], |args| args.settings.sampling.typical == Some(0.9)),
    (&["--top-nsigma", "2"], |args| args.settings.sampling.top_n_sigma == Some(2.0)),
    (&["--xtc-probability", "0.5"], |args| args.settings.sampling.xtc_probability == Some(0.5)),
    (&["--xtc-threshold", "0.2"], |args| args.settings.sampling.xtc_threshold == Some(0.2)),
    (&["--repeat-penalty", "1.1"], |args| args.settings.sampling.repeat_penalty == Some(1.1)),
    (&["--repeat-last-n", "-1"], |args| args.settings.sampling.repeat_last_n == Some(-1)),
    (&["--presence-penalty", "1.5"], |args| args.settings.sampling.presence_penalty == Some(1.5)),
    (&["--frequency-penalty", "-0.5"], |args| args.settings.sampling.frequency_penalty == Some(-0.5)),
    (&["--dry-multiplier", "0.8"], |args| args.settings.sampling.dry_multiplier == Some(0.8)),
    (&["--dry-base", "1.5"], |args| args.settings.sampling.dry_base == Some(1.5)),
    (&["--dry-allowed-length", "3"], |args| args.settings.sampling.dry_allowed_length == Some(3)),
    (&["--dry-penalty-last-n", "-1"], |args| args.settings.sampling.dry_penalty_last_n == Some(-1)),
    (&["--dynatemp-range", "0.5"], |args| args.settings.sampling.dynatemp_range == Some(0.5)),
    (&["--dynatemp-exp", "1.5"], |args| args.settings.sampling.dynatemp_exp == Some(1.5)),
    (&["--mirostat", "2"], |args| args.settings.sampling.mirostat == Some(2)),
    (&["--mirostat-lr", "0.2"], |args| args.settings.sampling.mirostat_lr == Some(0.2)),
    (&["--mirostat-ent", "4"], |args| args.settings.sampling.mirostat_ent == Some(4.0)),
    (&["--samplers", "top_k;temperature"], |args| args.settings.sampling.samplers.is_some()),
    (&["--sampler-seq", "kt"], |args| args.settings.sampling.sampler_seq.as_deref() == Some("kt")),
    (&["--sampling-seq", "kt"], |args| args.settings.sampling.sampler_seq.as_deref() == Some("kt")),
    (&["--logit-bias", "15043-1"], |args| args.settings.sampling.logit_bias == ["15043-1"]),
    (&["-l", "15043+1"], |args| args.settings.sampling.logit_bias == ["15043+1"]),
    (&["--ignore-eos"], |args| args.settings.generation.ignore_eos),
    (&["-r", "User:"], |args| args.settings.generation.reverse_prompt == ["User:"]),
    (&["--no-escape"], |args| args.settings.generation.no_escape),
    (&["--grammar", "root ::= \"a\""], |args| args.settings.constraint.grammar.is_some()),
    (&["--grammar-file", "g.gbnf"], |args| path(args.settings.constraint.grammar_file.as_ref(), "g.gbnf")),
    (&["--json-schema", "{}"], |args| args.settings.constraint.json_schema.as_deref() == Some("{}")),
    (&["-j", "{}"], |args| args.settings.constraint.json_schema.as_deref() == Some("{}")),
    (&["-jf", "s.json"], |args| path(args.settings.constraint.json_schema_file.as_ref(), "s.json")),
    (&["--chat-template", "chatml"], |args| {
        args.settings.template.chat_template.as_deref() == Some("chatml")
    }),
    (&["--chat-template-file", "t"], |args| path(args.settings.template.chat_template_file.as_ref(), "t")),
    (&["--chat-template-kwargs", "{}"], |args| {
        args.settings.template.chat_template_kwargs.as_deref() == Some("{}")
    }),
    (&["-rea", "off"], |args| args.settings.reasoning.reasoning == Some(ReasoningName::Off)),
    (&["--reasoning", "on"], |args| args.settings.reasoning.reasoning == Some(ReasoningName::On)),
    (&["--reasoning-format", "deepseek"], |_| true),
    (&["--reasoning-format", "none"], |_| true),
    (&["--reasoning-effort", "low"], |args| {
        args.settings.reasoning.reasoning_effort.as_deref() == Some("low")
    }),
    (&["--reasoning-budget", "0"], |args| args.settings.reasoning.reasoning_budget == Some(0)),
    (&["--reasoning-budget", "-1"], |args| args.settings.reasoning.reasoning_budget == Some(-1)),
    (&["--spec-type", "ngram-simple"], |args| args.settings.speculation.spec.is_some()),
    (&["--spec-type", "draft-mtp"], |args| args.settings.speculation.spec.is_some()),
    (&["--spec-type", "none"], |args| args.settings.speculation.spec.is_some()),
    (&["--spec-draft-n-max", "3"], |args| args.settings.speculation.spec_draft_n_max == Some(3)),
    (&["--draft-max", "3"], |args| args.settings.speculation.spec_draft_n_max == Some(3)),
    (&["--draft", "3"], |args| args.settings.speculation.spec_draft_n_max == Some(3)),
    (&["--spec-draft-n-min", "1"], |args| args.settings.speculation.spec_draft_n_min == Some(1)),
    (&["-md", "d.gguf"], |args| path(args.settings.speculation.model_draft.as_ref(), "d.gguf")),
    (&["--load-mode", "mlock"], |args| args.settings.model.load_mode == Some(LoadMode::Mlock)),
    (&["-lm", "mmap+mlock"], |args| args.settings.model.load_mode == Some(LoadMode::Mlock)),
    (&["-lm", "dio"], |args| args.settings.model.load_mode == Some(LoadMode::None)),
    (&["--mlock"], |args| args.settings.model.mlock),
    (&["--no-mmap"], |args| args.settings.model.no_mmap),
    (&["--buffer", "32"], |args| args.settings.compute.buffer == 32),
    (&["--no-state-below", "9"], |args| args.settings.compute.no_state_below == Some(9)),
    (&["--spec", "off"], |args| args.settings.speculation.spec.is_some()),
    (&["--print-cache-report"], |args| args.settings.generation.print_cache_report),
];

/// Flags of llama-server.
const SERVE: &[(&[&str], Check<ServeArgs>)] = &[
    (&["-m", "f.gguf"], |args| path(args.model.model.as_ref(), "f.gguf")),
    (&["--host", "0.0.0.0"], |args| args.host == "0.0.0.0"),
    (&["--port", "8080"], |args| args.port == Some(8080)),
    (&["--api-key", "a,b"], |args| args.api_key == ["a", "b"]),
    (&["--api-key-file", "k"], |args| path(args.api_key_file.as_ref(), "k")),
    (&["-np", "4"], |args| args.parallel == Some(4)),
    (&["--parallel", "-1"], |args| args.parallel == Some(-1)),
    (&["--no-cache-prompt"], |args| args.no_cache_prompt),
    (&["-cram", "-1"], |args| args.cache_ram == Some(-1)),
    (&["--cache-ram", "8192"], |args| args.cache_ram == Some(8192)),
    (&["--slot-save-path", "s"], |args| path(args.slot_save_path.as_ref(), "s")),
    (&["--no-slots"], |args| args.no_slots),
    (&["-to", "3600"], |args| args.timeout == 3600),
    (&["--timeout", "3600"], |args| args.timeout == 3600),
    (&["--ssl-key-file", "k", "--ssl-cert-file", "c"], |args| path(args.ssl_cert_file.as_ref(), "c")),
    (&["--cors-origins", "*"], |args| args.cors_origins == ["*"]),
    (&["-a", "one,two"], |args| args.alias == ["one", "two"]),
    (&["--models-dir", "d", "--models-max", "2"], |args| args.models_max == 2),
    (&["--sleep-idle-seconds", "60"], |args| args.idle_unload == 60),
    (&["--no-webui"], |args| args.no_ui),
    (&["--no-warmup"], |args| args.no_warmup),
    (&["-rea", "off"], |args| args.reasoning == ReasoningName::Off),
    (&["--reasoning-format", "none"], |_| true),
    (&["--reasoning-format", "deepseek-legacy"], |_| true),
    (&["--reasoning-budget", "0"], |args| args.reasoning_budget == Some(0)),
    (&["-tb", "8", "-ub", "256"], |args| args.compute.threads_batch == 8),
    (&["--mirostat", "1"], |args| args.sampling.mirostat == Some(1)),
    (&["--state-budget", "2G"], |args| args.state_budget.as_deref() == Some("2G")),
    (&["--max-gap-ms", "100"], |args| args.max_gap_ms == 100),
    (&["--max-queue", "9"], |args| args.max_queue == Some(9)),
    (&["--max-body", "9"], |args| args.max_body == 9),
    (&["--allowed-hosts", "pond"], |args| args.allowed_hosts == ["pond"]),
];

#[test]
fn flags_of_llama_cli_mean_what_they_mean_there() {
    for (flags, check) in RUN {
        for line in [[&["run"], *flags].concat(), flags.to_vec()] {
            let Verb::Run(args) = parsed(&line) else { panic!("{line:?} is no run") };
            assert!(check(&args), "{line:?}: {args:?}");
        }
    }
}

#[test]
fn flags_of_llama_server_mean_what_they_mean_there() {
    for (flags, check) in SERVE {
        let Verb::Serve(args) = parsed(&[&["serve"], *flags].concat()) else { panic!("{flags:?}") };
        assert!(check(&args), "{flags:?}: {args:?}");
    }
}

#[test]
fn flags_that_everybody_types_say_more_on_every_verb() {
    for flags in [&["-v"][..], &["--verbose"], &["--log-file", "l"], &["--log-jsonl"]] {
        for verb in ["run", "serve", "bench", "chat"] {
            parsed(&[&[verb], flags].concat());
        }
    }
}

/// Flags that ask for what is the case.
#[test]
fn what_is_so_anyway_is_granted_in_silence() {
    let granted: &[&[&str]] = &[
        &["--jinja"],
        &["--cache-prompt"],
        &["--metrics"],
        &["--slots"],
        &["--props"],
        &["-kvu"],
        &["-cb"],
        &["--cont-batching"],
        &["--mmap"],
        &["--warmup"],
        &["--repack"],
        &["-no-cnv"],
        &["-st"],
        &["--no-display-prompt"],
        &["--simple-io"],
        &["--log-disable"],
        &["--no-perf"],
        &["--color"],
        &["--color", "auto"],
        &["--log-colors", "off"],
        &["-e"],
        &["--no-mmproj"],
        &["--no-context-shift"],
        &["--spec-default"],
        &["--stdin"],
        &["--no-penalize-nl"],
    ];
    for flags in granted {
        for verb in ["run", "serve"] {
            parsed(&[&[verb, "-t", "2"], *flags, &["-n", "3"]].concat());
        }
    }
}

#[test]
fn what_means_nothing_here_is_dropped_and_named() {
    let dropped: &[&[&str]] = &[
        &["-fa"],
        &["-fa", "on"],
        &["--flash-attn", "auto"],
        &["-sm", "layer"],
        &["-ts", "3,1"],
        &["-mg", "0"],
        &["--cache-reuse", "256"],
        &["--ctx-checkpoints", "32"],
        &["-ctxcp", "8"],
        &["--no-kv-offload"],
        &["-nkvo"],
        &["--swa-full"],
        &["--numa", "distribute"],
        &["-nr"],
        &["--prio", "2"],
        &["--poll", "50"],
        &["-C", "ff"],
        &["-Cr", "0-3"],
        &["--cpu-strict", "1"],
        &["--keep", "-1"],
        &["--threads-http", "-1"],
        &["--sse-ping-interval", "30"],
        &["-lv", "4"],
        &["-fit", "off"],
        &["-cmoe"],
        &["-ncmoe", "12"],
        &["-ot", "exps=CPU"],
        &["--embeddings"],
        &["-sp"],
        &["-ngld", "99"],
        &["--spec-draft-p-min", "0.5"],
        &["--spec-ngram-mod-n-match", "24"],
        &["--verbose-prompt"],
        &["--memory-f32"],
        &["--penalize-nl"],
        &["-gqa", "8"],
    ];
    for flags in dropped {
        for verb in ["run", "serve"] {
            let line = normal(&[&[verb, "-t", "2"], *flags, &["-n", "3"]].concat());
            let kept = line.arguments[1..].join(std::ffi::OsStr::new(" "));
            assert_eq!(kept, format!("{verb} -t 2 -n 3").as_str());
            assert_eq!(line.ignored, [flags[0]], "{flags:?}");
        }
    }
    // A server has a first request to be warm for; a text begins at once.
    assert_eq!(normal(&["run", "--no-warmup"]).ignored, ["--no-warmup"]);
    let serve = normal(&["serve", "--no-warmup"]);
    assert_eq!((serve.arguments.len(), serve.ignored.len()), (3, 0));
}

#[test]
fn what_would_change_the_answer_is_refused_with_a_reason() {
    let refused = [
        "--lora",
        "--lora-scaled",
        "--control-vector",
        "--mmproj",
        "--image",
        "--adaptive-target",
        "--override-kv",
        "--rope-freq-base",
        "--rope-scaling",
        "--yarn-ext-factor",
        "-gan",
        "--rpc",
        "-mu",
        "-hfd",
        "--prompt-cache",
        "-i",
        "-ins",
        "--tfs",
        "--in-prefix",
        "-mli",
        "--reasoning-budget-message",
        "--rerank",
        "--api-prefix",
        "--tools",
        "--list-devices",
        "--models-preset",
    ];
    for flag in refused {
        let line = normal(&["run", flag, "x"]);
        assert_eq!(line.refused.map(|(option, _)| option).as_deref(), Some(flag));
    }
    let output = Command::new(env!("CARGO_BIN_EXE_millpond"))
        .args(["-m", "f.gguf", "--lora", "a.gguf", "-p", "x"])
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert_eq!(errors, "millpond: --lora: adapters are not supported: merge them into the model\n");
    assert!(output.stdout.is_empty());
}
