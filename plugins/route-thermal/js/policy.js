// A small router by heat and difficulty. The same in four languages: see the README one
// folder up.
import { plan, reject } from './homeostat/homeostat.js';

// Distances to the first slowdown, in °C, from which a device counts as hot or warm.
const HOT_CELSIUS = 5;
const WARM_CELSIUS = 15;
// Draft tokens where speculation is allowed.
const DRAFT_TOKENS = 4;
// When to try again, if nothing is ready.
const RETRY_MS = 1000;

/** @param {import('./homeostat/contract.js').Snapshot} snapshot */
function heat(snapshot) {
  const margins = snapshot.devices.map((d) => d.thermalMarginCelsius?.value ?? Infinity);
  const margin = Math.min(...margins);
  const { state } = snapshot.metabolism;
  if (state === 'constrained' || state === 'critical' || margin <= HOT_CELSIUS) return 'hot';
  if (state === 'elevated' || margin <= WARM_CELSIUS) return 'warm';
  return 'cool';
}

/** @type {import('./homeostat/contract.js').Router} */
export const router = {
  route(request, classification, tiers, snapshot) {
    const ready = tiers.filter((t) => t.ready);
    if (ready.length === 0) return reject('overloaded', 'no tier is ready', RETRY_MS);
    let wanted = Math.floor(ready.length / 2);
    let word = 'middle';
    if (classification.pSimple >= 0.5) {
      wanted = 0;
      word = 'smallest';
    } else if (classification.pComplex >= 0.5) {
      wanted = ready.length - 1;
      word = 'largest';
    }
    const now = heat(snapshot);
    let asked = ready.slice(wanted);
    let reason = `cool: from the ${word}`;
    if (now === 'hot') {
      asked = ready.slice(0, 1);
      reason = 'hot: only the smallest';
    } else if (now === 'warm') {
      const smaller = Math.max(wanted - 1, 0);
      asked = ready.slice(smaller, smaller + 1);
      reason = 'warm: one size smaller';
    }
    const guess = now !== 'hot' && snapshot.metabolism.speculation !== 'avoid';
    const decision = plan(asked.map((t) => t.id), reason);
    decision.val.steps.forEach((step, i) => {
      step.maxDraftTokens = guess && asked[i].canSpeculate ? DRAFT_TOKENS : 0;
    });
    return decision;
  },
};
