//! Parameters of the sampling chain, their defaults and their bounds.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

use super::mirostat::Mirostat;

/// Why parameters were refused.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A number outside its range.
    #[error("{name} is {value}, expected {expected}")]
    Range {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: f64,
        /// What may be given.
        expected: &'static str,
    },
    /// A bias for a token that does not exist.
    #[error("logit_bias names token {id}, outside the vocabulary of {size}")]
    BiasToken {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        size: usize,
    },
    /// More biases than there are tokens.
    #[error("logit_bias has {count} entries, more than the vocabulary of {size}")]
    BiasCount {
        /// Number of entries.
        count: usize,
        /// Size of the vocabulary.
        size: usize,
    },
    /// A stage of the chain that does not exist.
    #[error(
        "unknown sampler {name:?}, expected penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc or temperature"
    )]
    UnknownStage {
        /// What was given.
        name: String,
    },
    /// A stage that stands in the chain twice.
    #[error("sampler {name} stands in the chain twice")]
    RepeatedStage {
        /// Its name.
        name: &'static str,
    },
}

/// Largest change of a logit by one parameter: far beyond any effect, and sums of them stay numbers.
const LARGEST_CHANGE: f32 = 1e6;

/// One stage of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Repetition, presence and frequency penalties.
    Penalties,
    /// Penalty on tokens that would prolong a repeated sequence.
    Dry,
    /// Keeps logits within some standard deviations of the largest.
    TopNSigma,
    /// Keeps the k most probable tokens.
    TopK,
    /// Keeps the tokens whose information is closest to the entropy.
    TypicalP,
    /// Keeps the most probable tokens that together reach a probability.
    TopP,
    /// Keeps tokens with at least a share of the largest probability.
    MinP,
    /// Sometimes removes all but the least of the probable tokens.
    Xtc,
    /// Divides logits by the temperature.
    Temperature,
}

impl Stage {
    /// All stages in the default order.
    pub const ALL: [Self; 9] = [
        Self::Penalties,
        Self::Dry,
        Self::TopNSigma,
        Self::TopK,
        Self::TypicalP,
        Self::TopP,
        Self::MinP,
        Self::Xtc,
        Self::Temperature,
    ];

    /// Its name in a list of samplers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Penalties => "penalties",
            Self::Dry => "dry",
            Self::TopNSigma => "top_n_sigma",
            Self::TopK => "top_k",
            Self::TypicalP => "typ_p",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::Xtc => "xtc",
            Self::Temperature => "temperature",
        }
    }
}

impl FromStr for Stage {
    type Err = SamplingError;

    /// Accepts the names above, with `-` for `_`, and the synonyms that are in use.
    fn from_str(name: &str) -> Result<Self, SamplingError> {
        let plain = name.trim().to_ascii_lowercase().replace('-', "_");
        let known = Self::ALL.into_iter().find(|stage| stage.name() == plain);
        let synonym = || match plain.as_str() {
            "typical_p" | "typical" | "typ" => Some(Self::TypicalP),
            "nucleus" => Some(Self::TopP),
            "temp" => Some(Self::Temperature),
            _ => None,
        };
        known
            .or_else(synonym)
            .ok_or_else(|| SamplingError::UnknownStage { name: name.chars().take(64).collect() })
    }
}

/// The stages that run, in order. A stage that is left out does nothing, whatever its parameters say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamplerOrder(Vec<Stage>);

impl SamplerOrder {
    /// A chain of these stages.
    ///
    /// # Errors
    /// A stage stands in it twice.
    pub fn new(stages: Vec<Stage>) -> Result<Self, SamplingError> {
        for (index, stage) in stages.iter().enumerate() {
            if stages[..index].contains(stage) {
                return Err(SamplingError::RepeatedStage { name: stage.name() });
            }
        }
        Ok(Self(stages))
    }

    /// The stages in order.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.0
    }
}

impl Default for SamplerOrder {
    fn default() -> Self {
        Self(Stage::ALL.to_vec())
    }
}

impl FromStr for SamplerOrder {
    type Err = SamplingError;

    /// Names separated by `;` or `,`.
    fn from_str(list: &str) -> Result<Self, SamplingError> {
        let names = list.split([';', ',']).filter(|name| !name.trim().is_empty());
        Self::new(names.map(Stage::from_str).collect::<Result<_, _>>()?)
    }
}

impl fmt::Display for SamplerOrder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|stage| stage.name()).collect();
        formatter.write_str(&names.join(";"))
    }
}

/// What the sampling chain does. The defaults are llama.cpp's.
///
/// ```
/// use millpond::sample::SamplingParams;
///
/// let calm = SamplingParams { temperature: 0.3, top_p: 0.8, seed: Some(7), ..SamplingParams::default() };
/// calm.validate(248_320)?;
/// assert!(SamplingParams::greedy().is_greedy());
/// # Ok::<(), millpond::sample::SamplingError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Seed of all draws; `None` takes a fresh one.
    pub seed: Option<u64>,
    /// Temperature; 0 and below always takes the most probable token.
    pub temperature: f32,
    /// How far the temperature moves with the entropy of what may be chosen: it is lower by this where one token is
    /// certain, and higher where all are alike. 0 leaves it alone.
    pub dynatemp_range: f32,
    /// Exponent of the share of the largest possible entropy by which it moves.
    pub dynatemp_exponent: f32,
    /// Most probable tokens kept; 0 and below keeps all.
    pub top_k: i32,
    /// Probability that the kept tokens reach together; 1 keeps all.
    pub top_p: f32,
    /// Least share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// Probability of the locally typical tokens kept; 1 keeps all.
    pub typical_p: f32,
    /// Standard deviations below the largest logit kept; 0 and below keeps all.
    pub top_n_sigma: f32,
    /// Chance that XTC cuts.
    pub xtc_probability: f32,
    /// Probability from which a token counts as probable for XTC; above 0.5 it never cuts.
    pub xtc_threshold: f32,
    /// Logits of tokens in the window are divided (if positive) or multiplied by this; 1 does nothing.
    pub repeat_penalty: f32,
    /// Subtracted once from the logit of every token in the window.
    pub presence_penalty: f32,
    /// Subtracted from the logit for every occurrence in the window.
    pub frequency_penalty: f32,
    /// Tokens of history that penalties look at; 0 none, -1 all.
    pub repeat_last_n: i32,
    /// Strength of DRY; 0 does nothing.
    pub dry_multiplier: f32,
    /// Growth of the DRY penalty with each repeated token.
    pub dry_base: f32,
    /// Longest repetition that DRY does not punish.
    pub dry_allowed_length: u32,
    /// Tokens of history that DRY looks at; 0 none, -1 all.
    pub dry_penalty_last_n: i32,
    /// Tokens that a repetition does not reach across.
    pub dry_breakers: Vec<u32>,
    /// Whether Mirostat takes the place of all stages but the temperature.
    pub mirostat: Mirostat,
    /// Surprise of a token, in bits, that Mirostat aims at.
    pub mirostat_tau: f32,
    /// How much of the last token's error Mirostat corrects.
    pub mirostat_eta: f32,
    /// Added to the logit of a token; negative infinity forbids it.
    pub logit_bias: Vec<(u32, f32)>,
    /// Order of the stages.
    pub samplers: SamplerOrder,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            seed: None,
            temperature: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: -1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: 64,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: -1,
            dry_breakers: Vec::new(),
            mirostat: Mirostat::Off,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            logit_bias: Vec::new(),
            samplers: SamplerOrder::default(),
        }
    }
}

impl SamplingParams {
    /// Always the most probable token, without penalties.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, seed: Some(0), ..Self::default() }
    }

    /// Whether the most probable token is taken, so that the seed has no influence.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        let moves = self.dynatemp_range > 0.0 && !self.mirostat.is_on();
        self.temperature <= 0.0 && !moves && self.stages().contains(&Stage::Temperature)
    }

    /// The stages that run.
    pub(super) fn stages(&self) -> &[Stage] {
        if self.mirostat.is_on() { &[Stage::Temperature] } else { self.samplers.stages() }
    }

    /// Checks every number against its range and every bias against the vocabulary.
    ///
    /// # Errors
    /// The first parameter that is out of bounds.
    pub fn validate(&self, vocabulary_size: usize) -> Result<(), SamplingError> {
        let share = |name, value: f32| check(name, value, (0.0..=1.0).contains(&value), "0 to 1");
        let finite = |name, value: f32| check(name, value, value.is_finite(), "a finite number");
        let bounded = |name, value: f32| check(name, value, value.abs() <= LARGEST_CHANGE, "-1e6 to 1e6");
        let positive =
            |name, value: f32| check(name, value, (0.0..f32::INFINITY).contains(&value), "0 or above");
        finite("temperature", self.temperature)?;
        positive("dynatemp_range", self.dynatemp_range)?;
        positive("dynatemp_exponent", self.dynatemp_exponent)?;
        positive("mirostat_tau", self.mirostat_tau)?;
        share("mirostat_eta", self.mirostat_eta)?;
        share("top_p", self.top_p)?;
        share("min_p", self.min_p)?;
        share("typical_p", self.typical_p)?;
        finite("top_n_sigma", self.top_n_sigma)?;
        share("xtc_probability", self.xtc_probability)?;
        share("xtc_threshold", self.xtc_threshold)?;
        let divisor = self.repeat_penalty;
        check("repeat_penalty", divisor, (1e-3..=1e3).contains(&divisor), "0.001 to 1000")?;
        bounded("presence_penalty", self.presence_penalty)?;
        bounded("frequency_penalty", self.frequency_penalty)?;
        window("repeat_last_n", self.repeat_last_n)?;
        positive("dry_multiplier", self.dry_multiplier)?;
        check("dry_base", self.dry_base, (1.0..f32::INFINITY).contains(&self.dry_base), "1 or above")?;
        window("dry_penalty_last_n", self.dry_penalty_last_n)?;
        self.validate_bias(vocabulary_size)
    }

    fn validate_bias(&self, size: usize) -> Result<(), SamplingError> {
        if self.logit_bias.len() > size {
            return Err(SamplingError::BiasCount { count: self.logit_bias.len(), size });
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= size {
                return Err(SamplingError::BiasToken { id, size });
            }
            let fits = bias.abs() <= LARGEST_CHANGE || bias == f32::NEG_INFINITY;
            check("logit_bias", bias, fits, "-1e6 to 1e6, or negative infinity")?;
        }
        Ok(())
    }
}

fn check(name: &'static str, value: f32, fits: bool, expected: &'static str) -> Result<(), SamplingError> {
    if fits { Ok(()) } else { Err(SamplingError::Range { name, value: value.into(), expected }) }
}

fn window(name: &'static str, value: i32) -> Result<(), SamplingError> {
    if value >= -1 {
        Ok(())
    } else {
        Err(SamplingError::Range { name, value: value.into(), expected: "-1 or above" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_chain_is_written_as_llama_cpp_writes_it() {
        let text = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature";
        assert_eq!(SamplerOrder::default().to_string(), text);
        assert_eq!(text.parse(), Ok(SamplerOrder::default()));
        assert_eq!("top-k, temp".parse(), SamplerOrder::new(vec![Stage::TopK, Stage::Temperature]));
        assert_eq!("".parse(), SamplerOrder::new(vec![]));
        assert_eq!(
            "temp;temperature".parse::<SamplerOrder>(),
            Err(SamplingError::RepeatedStage { name: "temperature" })
        );
        assert!(matches!("mirostat".parse::<SamplerOrder>(), Err(SamplingError::UnknownStage { .. })));
    }

    #[test]
    fn parameters_out_of_bounds_are_refused_by_name() {
        let refused = |edit: fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            edit(&mut params);
            match params.validate(100) {
                Err(SamplingError::Range { name, .. }) => name,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(|p| p.temperature = f32::NAN), "temperature");
        assert_eq!(refused(|p| p.temperature = f32::INFINITY), "temperature");
        assert_eq!(refused(|p| p.top_p = 1.5), "top_p");
        assert_eq!(refused(|p| p.top_p = f32::NAN), "top_p");
        assert_eq!(refused(|p| p.min_p = -0.1), "min_p");
        assert_eq!(refused(|p| p.typical_p = 2.0), "typical_p");
        assert_eq!(refused(|p| p.repeat_penalty = 0.0), "repeat_penalty");
        assert_eq!(refused(|p| p.presence_penalty = f32::NEG_INFINITY), "presence_penalty");
        assert_eq!(refused(|p| p.repeat_last_n = -2), "repeat_last_n");
        assert_eq!(refused(|p| p.dry_base = 0.5), "dry_base");
        assert_eq!(refused(|p| p.dynatemp_range = -0.1), "dynatemp_range");
        assert_eq!(refused(|p| p.dynatemp_exponent = f32::NAN), "dynatemp_exponent");
        assert_eq!(refused(|p| p.mirostat_tau = f32::INFINITY), "mirostat_tau");
        assert_eq!(refused(|p| p.mirostat_eta = 1.5), "mirostat_eta");
        assert_eq!(refused(|p| p.logit_bias = vec![(1, f32::NAN)]), "logit_bias");
        assert_eq!(refused(|p| p.logit_bias = vec![(1, f32::INFINITY)]), "logit_bias");
        let mut params = SamplingParams {
            logit_bias: vec![(1, f32::NEG_INFINITY)],
            temperature: -1.0,
            ..Default::default()
        };
        assert_eq!(params.validate(100), Ok(()));
        params.logit_bias = vec![(100, 0.0)];
        assert_eq!(params.validate(100), Err(SamplingError::BiasToken { id: 100, size: 100 }));
        params.logit_bias = vec![(0, 0.0); 101];
        assert_eq!(params.validate(100), Err(SamplingError::BiasCount { count: 101, size: 100 }));
    }
}
