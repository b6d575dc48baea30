// A cascade in the manner of FrugalGPT: ask the smallest tier, and a larger one only while the
// answer's confidence stays below that step's threshold. A validator says how far an answer is
// trusted; this router says who is asked, in which order, and how much trust is enough.
import { plan, reject } from './homeostat/homeostat.js';
import { config, number, wrong } from './homeostat/config.js';

// A token has about four characters of English; three errs on the dear side.
const CHARS_PER_TOKEN = 3;
// Tokens of an answer when the client sets no limit.
const ANSWER_TOKENS = 256;
// When to try again, if nothing is ready.
const RETRY_MS = 1000;

/** One confidence for each step but the last; the last one given holds for all that follow. */
function thresholds() {
  const text = config('thresholds') ?? '0.7';
  const values = text.split(',').map((part) => (part.trim() === '' ? NaN : Number(part)));
  const usable = values.every((value) => value >= 0 && value <= 1);
  return usable ? values : wrong('thresholds', text, 'confidences from 0 to 1, with commas');
}

/**
 * The share of good answers that a tier is expected to give; null when nobody has stated any.
 *
 * @param {import('./homeostat/contract.js').Tier} tier
 * @param {import('./homeostat/contract.js').Classification} c
 */
function quality(tier, c) {
  const [simple, medium, complex] = tier.quality;
  if (simple + medium + complex === 0) return null;
  return c.pSimple * simple + c.pMedium * medium + c.pComplex * complex;
}

/**
 * What one answer costs in US dollars. A local tier without a price costs none; what a remote
 * one without a price costs nobody knows.
 */
function price(tier, promptTokens, answerTokens) {
  const { usdPerMtokPrompt: prompt, usdPerMtokOutput: output } = tier;
  if (prompt === null && output === null) return tier.kind === 'remote' ? Infinity : 0;
  return ((prompt ?? 0) * promptTokens + (output ?? 0) * answerTokens) / 1e6;
}

/** @type {import('./homeostat/contract.js').Router} */
export const router = {
  route(request, classification, tiers) {
    const stops = thresholds();
    const most = Math.floor(number('steps', 3, 1, 8));
    const budget = number('usd-per-request', Infinity, 0, 1e6);
    const ready = tiers.filter((t) => t.ready);
    if (ready.length === 0) return reject('overloaded', 'no tier is ready', RETRY_MS);

    const shown = request.messages.reduce((sum, m) => sum + m.content.length, 0);
    const promptTokens = (shown + request.cutBytes) / CHARS_PER_TOKEN;
    const answerTokens = Math.min(request.maxTokens ?? ANSWER_TOKENS, ANSWER_TOKENS);
    const chain = [];
    let best = null;
    let spent = 0; // if every step were asked
    for (const tier of ready) {
      if (chain.length === most) break;
      const expected = quality(tier, classification);
      // Whoever is not better than those who failed need not be asked after them.
      if (best !== null && expected !== null && expected <= best) continue;
      const cost = price(tier, promptTokens, answerTokens);
      // Somebody must answer, so the first is asked whatever it costs.
      if (chain.length > 0 && spent + cost > budget) continue;
      chain.push(tier.id);
      best = expected ?? best;
      spent += cost;
    }

    const stop = (i) => stops[Math.min(i, stops.length - 1)];
    const story = chain.map((id, i) => (i + 1 < chain.length ? `${id} until ${stop(i)}` : id));
    const decision = plan(chain, story.join(', then '));
    decision.val.steps.forEach((step, i) => (step.acceptThreshold = stop(i)));
    return decision;
  },
};
