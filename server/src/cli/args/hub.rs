//! Options about models on a hub and on this machine.

use clap::Args;

/// How the hub is reached.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Hub")]
pub struct HubArgs {
    /// Address of the hub [default: https://huggingface.co]
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT")]
    pub hf_endpoint: Option<String>,
    /// Token for models that are not public; it is sent to the hub alone
    #[arg(long, value_name = "TOKEN", env = "HF_TOKEN", hide_env_values = true)]
    pub hf_token: Option<String>,
    /// Further hosts, with their port if it is unusual, that the hub may redirect to
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub hub_hosts: Vec<String>,
    /// Fetch nothing: use what is on this machine
    #[arg(long)]
    pub offline: bool,
}

/// Fetch a model from the hub.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// The model, with the quantisation wanted: ORG/NAME or ORG/NAME:QUANT
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Take this file of the repository
    #[arg(long, value_name = "PATH")]
    pub hf_file: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub hub: HubArgs,
}

/// List the models on this machine.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Compare the contents with the hashes that they came with
    #[arg(long)]
    pub verify: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Remove models from this machine.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Models, by the names that `list` shows; ORG/NAME without a quantisation means all of it
    #[arg(value_name = "MODEL", required = true)]
    pub models: Vec<String>,
}

/// List the servers that run on this machine.
#[derive(Args, Debug)]
pub struct PsArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
