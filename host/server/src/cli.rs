//! The command line: what can be asked of this binary. Nothing happens here.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use homeostat_hooks::Hook;

/// An LLM inference host whose judgement can be swapped while it runs.
#[derive(Debug, Parser)]
#[command(
    name = "homeostat",
    version,
    after_help = "Exit codes: 0 done; 1 what was asked for failed or was refused; \
                  2 wrong usage or configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer OpenAI requests.
    ///
    /// Without any configuration: one small local model, three embedded policies, on
    /// http://127.0.0.1:8080. Fetch the model first with `homeostat models pull`.
    Serve(ServeArgs),
    /// Check, load, replace and remove policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Fetch and look at models.
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Show one snapshot of this machine, as policies see it, as JSON.
    Telemetry(ConfigArgs),
    /// Check or print configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Tell why a request was answered as it was.
    ///
    /// The id is in every answer: the field `id`, and the header x-request-id.
    Explain {
        /// Id of the request; without it, the latest requests are listed.
        id: Option<String>,
        /// Print the whole record as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        host: HostArgs,
    },
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Configuration file [default: homeostat.toml in the working folder, if it exists].
    #[arg(long, env = "HOMEOSTAT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Address to serve on, instead of the configured one.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Folder of model files, instead of the configured one.
    #[arg(long, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
}

/// A running host.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// Base URL of the running host.
    #[arg(
        long,
        env = "HOMEOSTAT_HOST",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL"
    )]
    pub host: String,
    /// Its admin token, if it has one.
    #[arg(long, env = "HOMEOSTAT_ADMIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Compile a Rust policy crate into a component.
    Build {
        /// Folder with the crate; `sdk/rust/template` is one to start from.
        crate_dir: PathBuf,
        /// File to write [default: the crate folder's name with .wasm, here].
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Take a component through admission and print the report; nothing is loaded.
    Check {
        /// A WebAssembly component.
        file: PathBuf,
        /// The hook it is meant for [default: those that it exports].
        #[arg(long, value_parser = hook)]
        hook: Option<Hook>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// List the policies of a running host.
    List {
        #[command(flatten)]
        host: HostArgs,
    },
    /// Load a component into a running host in place of the present one.
    Put {
        /// classify, route or validate.
        #[arg(value_parser = hook)]
        hook: Hook,
        /// A WebAssembly component.
        file: PathBuf,
        /// Name of the policy [default: the file's name].
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        host: HostArgs,
    },
    /// Go back to the generation before the present one.
    Rollback {
        /// classify, route or validate.
        #[arg(value_parser = hook)]
        hook: Hook,
        #[command(flatten)]
        host: HostArgs,
    },
    /// Remove a hook's policy; the built-in answer serves.
    Unload {
        /// classify, route or validate.
        #[arg(value_parser = hook)]
        hook: Hook,
        #[command(flatten)]
        host: HostArgs,
    },
}

#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// List known models and whether they are in the cache.
    List {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Fetch a model into the cache [default: all that the configuration needs].
    Pull {
        /// Name of a manifest.
        name: Option<String>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Say what is in a GGUF file.
    Inspect {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file and say what is wrong with it.
    Check(ConfigArgs),
    /// Print the default file: every setting, its default and the reason.
    Print,
}

fn hook(word: &str) -> Result<Hook, String> {
    let known = Hook::ALL.into_iter().find(|h| h.as_str() == word);
    known.ok_or_else(|| "expected classify, route or validate".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_hook_is_one_of_three_words() {
        let parse = |word| Cli::try_parse_from(["homeostat", "policy", "rollback", word]);
        assert!(parse("route").is_ok());
        let error = parse("router").unwrap_err().to_string();
        assert!(error.contains("classify, route or validate"), "{error}");
    }
}
