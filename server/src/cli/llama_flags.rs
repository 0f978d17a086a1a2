//! Options of llama.cpp that this program has under another name, or not at all: those that ask for what is the case
//! anyway, those that change nothing here, and those that would change an answer and cannot be honoured.

/// What follows an option that has no meaning here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing.
    None,
    /// One value, always.
    One,
    /// A value, if one of these words comes next.
    Word(&'static [&'static str]),
}

const SWITCH: Value = Value::Word(&["on", "off", "auto", "0", "1"]);

/// Options of several letters behind one dash, and what they are called here.
pub(super) const SPELLINGS: &[(&str, &str)] = &[
    ("-b", "--batch-size"),
    ("-cnv", "--chat"),
    ("-cram", "--cache-ram"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-dev", "--device"),
    ("-hf", "--hf-repo"),
    ("-hff", "--hf-file"),
    ("-hfr", "--hf-repo"),
    ("-hft", "--hf-token"),
    ("-jf", "--json-schema-file"),
    ("-lm", "--load-mode"),
    ("-md", "--model-draft"),
    ("-np", "--parallel"),
    ("-npl", "--streams"),
    ("-rea", "--reasoning"),
    ("-sys", "--system-prompt"),
    ("-sysf", "--system-prompt-file"),
    ("-tb", "--threads-batch"),
    ("-to", "--timeout"),
    ("-ub", "--ubatch-size"),
];

/// How many layers lie on a card.
pub(super) const LAYERS: [&str; 3] = ["-ngl", "--gpu-layers", "--n-gpu-layers"];

/// Options that ask for what is the case here anyway.
pub(super) const GRANTED: &[(&[&str], Value)] = &[
    (&["-cb", "--cont-batching"], Value::None),
    (&["--jinja", "--mmap", "-mmp", "--cache-prompt", "--warmup", "--repack"], Value::None),
    (&["-no-cnv", "--no-conversation", "-st", "--single-turn"], Value::None),
    (&["--no-display-prompt", "--simple-io", "--log-disable", "--no-perf"], Value::None),
    (&["--no-context-shift", "-kvu", "--kv-unified", "-co"], Value::None),
    (&["--color", "--log-colors"], SWITCH),
    (&["--metrics", "--slots", "--props", "--ui", "--webui", "--models-autoload"], Value::None),
    (&["-e", "--escape", "--no-log-prefix", "--no-log-timestamps", "--no-log-jsonl"], Value::None),
    (&["--no-mmproj", "--no-mmproj-auto", "--no-agent", "-no-ag", "--no-ui-mcp-proxy"], Value::None),
    (&["--spec-default", "--no-skip-chat-parsing", "--prefill-assistant"], Value::None),
    (&["--stdin", "--no-bos", "-ndio", "--no-direct-io", "--no-penalize-nl"], Value::None),
];

/// Options that change nothing here.
pub(super) const OBSOLETE: &[(&[&str], Value)] = &[
    (&["-fa", "--flash-attn"], SWITCH),
    (&["-sm", "--split-mode"], Value::One),
    (&["-ts", "--tensor-split"], Value::One),
    (&["-mg", "--main-gpu"], Value::One),
    (&["-b", "--batch-size", "-ub", "--ubatch-size", "-tb", "--threads-batch"], Value::One),
    (&["-nr", "--no-repack"], Value::None),
    (&["-nkvo", "--no-kv-offload", "-kvo", "--kv-offload"], Value::None),
    (&["-no-kvu", "--no-kv-unified"], Value::None),
    (&["--kv-unified-per-slot"], Value::One),
    (&["-nocb", "--no-cont-batching"], Value::None),
    (&["--swa-full"], Value::None),
    (&["--cache-reuse"], Value::One),
    (&["-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"], Value::One),
    (&["-cms", "--checkpoint-min-step"], Value::One),
    (&["--cache-idle-slots", "--no-cache-idle-slots", "--no-cache-prompt"], Value::None),
    (&["-sps", "--slot-prompt-similarity"], Value::One),
    (&["--no-jinja"], Value::None),
    (&["--no-warmup"], Value::None),
    (&["--context-shift"], Value::None),
    (&["--numa"], Value::One),
    (&["--prio", "--prio-batch", "--poll", "--poll-batch"], Value::One),
    (&["-C", "--cpu-mask", "-Cr", "--cpu-range", "--cpu-strict"], Value::One),
    (&["-Cb", "--cpu-mask-batch", "-Crb", "--cpu-range-batch", "--cpu-strict-batch"], Value::One),
    (&["--keep"], Value::One),
    (&["--threads-http", "--sse-ping-interval"], Value::One),
    (&["--cors-methods", "--cors-headers"], Value::One),
    (&["--cors-credentials", "--no-cors-credentials"], Value::None),
    (&["--tags"], Value::One),
    (&["--embedding", "--embeddings"], Value::None),
    (&["--perf", "-sp", "--special", "--check-tensors", "--no-host"], Value::None),
    (&["-lv", "--verbosity", "--log-verbosity"], Value::One),
    (&["--log-prefix", "--log-timestamps"], Value::None),
    (&["-fit", "--fit"], SWITCH),
    (&["-fitt", "--fit-target", "-fitc", "--fit-ctx"], Value::One),
    (&["-cmoe", "--cpu-moe", "--op-offload", "--no-op-offload"], Value::None),
    (&["-ncmoe", "--n-cpu-moe", "-ncffn", "--n-cpu-ffn", "--moe-cache-mib"], Value::One),
    (&["-ot", "--override-tensor", "-dt", "--defrag-thold", "-lzm", "--lazy-mode"], Value::One),
    (&["-bs", "--backend-sampling", "--spm-infill"], Value::None),
    (&["--mmproj-auto", "--mmproj-offload", "--no-mmproj-offload"], Value::None),
    (&["--reasoning-preserve", "--no-reasoning-preserve", "--no-prefill-assistant"], Value::None),
    (&["-lcs", "--lookup-cache-static", "-lcd", "--lookup-cache-dynamic"], Value::One),
    (&["-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "--spec-draft-ngl"], Value::One),
    (&["-devd", "--device-draft", "--spec-draft-device"], Value::One),
    (&["-td", "--threads-draft", "--spec-draft-threads"], Value::One),
    (&["-tbd", "--threads-batch-draft", "--spec-draft-threads-batch"], Value::One),
    (&["-cd", "--ctx-size-draft"], Value::One),
    (&["-ctkd", "--cache-type-k-draft", "--spec-draft-type-k"], Value::One),
    (&["-ctvd", "--cache-type-v-draft", "--spec-draft-type-v"], Value::One),
    (&["--draft-p-min", "--spec-draft-p-min", "--draft-p-split", "--spec-draft-p-split"], Value::One),
    (&["--spec-draft-sampling", "--spec-ngram-mod-n-min", "--spec-ngram-mod-n-max"], Value::One),
    (&["--spec-ngram-mod-n-match", "--spec-ngram-simple-size-n", "--spec-ngram-simple-size-m"], Value::One),
    (&["--spec-ngram-simple-min-hits", "--spec-ngram-size-n", "--spec-ngram-size-m"], Value::One),
    (&["--spec-ngram-min-hits"], Value::One),
    (&["--verbose-prompt", "-dio", "--direct-io"], Value::None),
    // Of older versions, as guides still have them.
    (
        &["--memory-f32", "--penalize-nl", "--mul-mat-q", "-nommq", "--no-mul-mat-q", "--low-vram"],
        Value::None,
    ),
    (&["-gqa", "--gqa", "-eps", "--rms-norm-eps"], Value::One),
];

/// Options whose absence would change what comes out, or that ask for what is done in another way here.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["--lora", "--lora-scaled", "--lora-init-without-apply"],
        "adapters are not supported: merge them into the model",
    ),
    (
        &["--control-vector", "--control-vector-scaled", "--control-vector-layer-range"],
        "control vectors are not supported",
    ),
    (
        &["-mm", "--mmproj", "-mmu", "--mmproj-url", "--image", "--audio", "--video"],
        "only text is read: no images, no sound",
    ),
    (&["--adaptive-target", "--adaptive-decay"], "the adaptive-p sampler is not supported"),
    (&["--dry-sequence-breaker"], "DRY looks across all tokens here"),
    (&["--override-kv"], "a file's keys are taken as they are"),
    (
        &["--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale"],
        "positions are as the file says",
    ),
    (
        &[
            "--yarn-orig-ctx",
            "--yarn-ext-factor",
            "--yarn-attn-factor",
            "--yarn-beta-slow",
            "--yarn-beta-fast",
        ],
        "positions are as the file says",
    ),
    (
        &["-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"],
        "a context grows no further than the model was made for",
    ),
    (&["--rpc"], "one machine computes"),
    (&["-mu", "--model-url", "-dr", "--docker-repo"], "models come from a hub: -hf ORG/NAME"),
    (
        &["-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf"],
        "fetch the draft model with `millpond pull` and name it with -md",
    ),
    (
        &["--prompt-cache", "--prompt-cache-all", "--prompt-cache-ro"],
        "`millpond session save` and `session load` keep the state behind a text",
    ),
    (
        &["-i", "--interactive", "-if", "--interactive-first", "-ins", "--instruct"],
        "`millpond chat` is a conversation",
    ),
    (&["--tfs", "--top-a"], "this sampler is not supported; --samplers lists those that are"),
    (&["-pg"], "reading and writing are measured apart: -p and -n"),
    (
        &["--in-prefix", "--in-suffix", "--in-prefix-bos"],
        "a conversation follows a template: --chat-template",
    ),
    (&["-mli", "--multiline-input"], "in `millpond chat`, text between three double quotes may span lines"),
    (&["-bf", "--binary-file"], "a prompt is text in UTF-8: -f"),
    (&["--reasoning-budget-message"], "thoughts have no budget here: --reasoning-budget 0 turns them off"),
    (&["--skip-chat-parsing"], "--reasoning-format none leaves thoughts in the text"),
    (&["--pooling", "--embd-normalize"], "requests say how embeddings are pooled, and they have length one"),
    (&["--rerank", "--reranking"], "reranking is not supported"),
    (
        &["--api-prefix", "--path", "--media-path", "--reuse-port"],
        "a proxy in front of the server can do that",
    ),
    (&["--models-preset"], "--models-dir names a folder of models; settings are in the configuration file"),
    (&["--no-models-autoload"], "models load when they are asked for"),
    (
        &["--tools", "--tools-runtime", "--agent", "-ag", "--ui-mcp-proxy", "--webui-mcp-proxy"],
        "the server runs no tools",
    ),
    (&["--mcp-servers-config", "--mcp-servers-json"], "the server runs no tools"),
    (
        &["--ui-config", "--webui-config", "--ui-config-file", "--webui-config-file"],
        "the chat page has no settings file",
    ),
    (&["-cl", "--cache-list"], "`millpond list` lists the models on this machine"),
    (&["--list-devices"], "`millpond doctor` tells what this machine has"),
    (&["--completion-bash"], "`millpond completions bash` prints them"),
    (&["--usage"], "--help lists the options"),
    (&["--log-prompts-dir"], "prompts are not written anywhere"),
];

/// What follows an option of a list.
pub(super) fn meaning(list: &[(&[&str], Value)], name: &str) -> Option<Value> {
    list.iter().find(|(names, _)| names.contains(&name)).map(|(_, value)| *value)
}

/// Why an option cannot be honoured.
pub(super) fn refusal(name: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(names, _)| names.contains(&name)).map(|(_, reason)| *reason)
}

/// Whether an option is in one of the lists.
pub(super) fn is_known(name: &str) -> bool {
    let listed = [GRANTED, OBSOLETE].iter().any(|list| meaning(list, name).is_some());
    listed || LAYERS.contains(&name) || refusal(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_is_in_two_lists() {
        let mut names: Vec<&str> = LAYERS.to_vec();
        for list in [GRANTED, OBSOLETE] {
            names.extend(list.iter().flat_map(|(names, _)| *names));
        }
        names.extend(REFUSED.iter().flat_map(|(names, _)| *names));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
