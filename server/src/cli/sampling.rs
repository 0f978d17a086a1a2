//! Sampling options, checked.

use millpond::sample::{Mirostat, SamplerOrder, SamplingParams, Stage};

use super::args::SamplingArgs;
use super::failure::usage;

/// The parameters that `args` ask for, with the defaults for what they leave out.
///
/// # Errors
/// Wrong usage: a value out of its range, a token outside the vocabulary.
pub(crate) fn params(args: &SamplingArgs, vocab: usize) -> anyhow::Result<SamplingParams> {
    let base = SamplingParams::default();
    let params = SamplingParams {
        seed: seed(args.seed)?,
        temperature: args.temp.unwrap_or(base.temperature),
        dynatemp_range: args.dynatemp_range.unwrap_or(base.dynatemp_range),
        dynatemp_exponent: args.dynatemp_exp.unwrap_or(base.dynatemp_exponent),
        top_k: args.top_k.unwrap_or(base.top_k),
        top_p: args.top_p.unwrap_or(base.top_p),
        min_p: args.min_p.unwrap_or(base.min_p),
        typical_p: args.typical.unwrap_or(base.typical_p),
        top_n_sigma: args.top_n_sigma.unwrap_or(base.top_n_sigma),
        xtc_probability: args.xtc_probability.unwrap_or(base.xtc_probability),
        xtc_threshold: args.xtc_threshold.unwrap_or(base.xtc_threshold),
        repeat_penalty: args.repeat_penalty.unwrap_or(base.repeat_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(base.presence_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(base.frequency_penalty),
        repeat_last_n: args.repeat_last_n.unwrap_or(base.repeat_last_n),
        dry_multiplier: args.dry_multiplier.unwrap_or(base.dry_multiplier),
        dry_base: args.dry_base.unwrap_or(base.dry_base),
        dry_allowed_length: args.dry_allowed_length.unwrap_or(base.dry_allowed_length),
        dry_penalty_last_n: args.dry_penalty_last_n.unwrap_or(base.dry_penalty_last_n),
        dry_breakers: base.dry_breakers,
        mirostat: args.mirostat.map_or(Ok(base.mirostat), mirostat)?,
        mirostat_tau: args.mirostat_ent.unwrap_or(base.mirostat_tau),
        mirostat_eta: args.mirostat_lr.unwrap_or(base.mirostat_eta),
        logit_bias: args.logit_bias.iter().map(|text| bias(text)).collect::<Result<_, _>>()?,
        samplers: samplers(args)?.unwrap_or(base.samplers),
    };
    params.validate(vocab).map_err(|error| usage(error.to_string()))?;
    Ok(params)
}

fn seed(seed: Option<i64>) -> anyhow::Result<Option<u64>> {
    match seed {
        None | Some(-1) => Ok(None),
        Some(seed) => u64::try_from(seed)
            .map(Some)
            .map_err(|_| usage(format!("--seed {seed} is neither -1 nor a positive number"))),
    }
}

fn mirostat(number: u8) -> anyhow::Result<Mirostat> {
    Mirostat::by_number(number).ok_or_else(|| usage(format!("--mirostat {number} is none of 0, 1 and 2")))
}

/// The chain that was asked for, by names or by letters.
fn samplers(args: &SamplingArgs) -> anyhow::Result<Option<SamplerOrder>> {
    let order = match (&args.samplers, &args.sampler_seq) {
        (Some(names), _) => names.parse(),
        (None, Some(letters)) => SamplerOrder::new(letters.chars().map(stage).collect::<Result<_, _>>()?),
        (None, None) => return Ok(None),
    };
    order.map(Some).map_err(|error| usage(error.to_string()))
}

/// The stage that a letter of llama.cpp's stands for.
fn stage(letter: char) -> anyhow::Result<Stage> {
    Ok(match letter {
        'e' => Stage::Penalties,
        'd' => Stage::Dry,
        's' => Stage::TopNSigma,
        'k' => Stage::TopK,
        'y' => Stage::TypicalP,
        'p' => Stage::TopP,
        'm' => Stage::MinP,
        'x' => Stage::Xtc,
        't' => Stage::Temperature,
        _ => return Err(usage(format!("--sampler-seq: {letter:?} is none of e, d, s, k, y, p, m, x and t"))),
    })
}

/// `15043+1`, `15043-0.5`, `15043-inf`.
fn bias(text: &str) -> anyhow::Result<(u32, f32)> {
    let wrong = || usage(format!("--logit-bias {text}: expected ID+BIAS or ID-BIAS"));
    let sign = text.find(['+', '-']).ok_or_else(wrong)?;
    let (id, value) = text.split_at(sign);
    Ok((id.parse().map_err(|_| wrong())?, value.parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_means_the_defaults() {
        assert_eq!(params(&SamplingArgs::default(), 10).unwrap(), SamplingParams::default());
    }

    #[test]
    fn values_are_taken_and_checked() {
        let args = SamplingArgs {
            seed: Some(7),
            temp: Some(0.0),
            logit_bias: vec!["3+1.5".to_owned(), "4-inf".to_owned()],
            samplers: Some("top_k;temperature".to_owned()),
            ..SamplingArgs::default()
        };
        let params = params(&args, 10).unwrap();
        assert_eq!((params.seed, params.temperature), (Some(7), 0.0));
        assert_eq!(params.logit_bias, [(3, 1.5), (4, f32::NEG_INFINITY)]);
        assert_eq!(params.samplers.stages().len(), 2);
    }

    #[test]
    fn letters_stand_for_samplers() {
        let letters =
            |letters: &str| SamplingArgs { sampler_seq: Some(letters.to_owned()), ..SamplingArgs::default() };
        assert_eq!(params(&letters("edskypmxt"), 10).unwrap(), SamplingParams::default());
        let two = params(&letters("kt"), 10).unwrap();
        assert_eq!(two.samplers.stages(), [Stage::TopK, Stage::Temperature]);
        let mirostat = SamplingArgs { mirostat: Some(2), mirostat_ent: Some(3.0), ..SamplingArgs::default() };
        let mirostat = params(&mirostat, 10).unwrap();
        assert_eq!(
            (mirostat.mirostat, mirostat.mirostat_tau, mirostat.mirostat_eta),
            (Mirostat::V2, 3.0, 0.1)
        );
    }

    #[test]
    fn nonsense_is_wrong_usage() {
        let bad = [
            SamplingArgs { seed: Some(-5), ..SamplingArgs::default() },
            SamplingArgs { top_p: Some(1.5), ..SamplingArgs::default() },
            SamplingArgs { temp: Some(f32::NAN), ..SamplingArgs::default() },
            SamplingArgs { logit_bias: vec!["10+1".to_owned()], ..SamplingArgs::default() },
            SamplingArgs { logit_bias: vec!["x".to_owned()], ..SamplingArgs::default() },
            SamplingArgs { samplers: Some("mirostat".to_owned()), ..SamplingArgs::default() },
            SamplingArgs { sampler_seq: Some("kk".to_owned()), ..SamplingArgs::default() },
            SamplingArgs { sampler_seq: Some("kz".to_owned()), ..SamplingArgs::default() },
            SamplingArgs { mirostat: Some(3), ..SamplingArgs::default() },
            SamplingArgs { dynatemp_range: Some(-1.0), ..SamplingArgs::default() },
        ];
        for args in bad {
            let error = params(&args, 10).unwrap_err();
            assert_eq!(super::super::failure::exit_code(&error), 2, "{args:?}");
        }
    }
}
