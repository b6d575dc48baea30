// Provisional answers: what was proposed last is used when the deadline comes first. Needs
// `import homeostat:policy/propose@0.1.0;` in world.wit.
import propose from 'homeostat:policy/propose@0.1.0';

/** @param {import('./contract.js').Classification} proposal inside classify */
export function classification(proposal) {
  propose.proposeClassification(proposal);
}

/** @param {import('./contract.js').Decision} proposal inside route */
export function decision(proposal) {
  propose.proposeDecision(proposal);
}

/** @param {import('./contract.js').Verdict} proposal inside validate */
export function verdict(proposal) {
  propose.proposeVerdict(proposal);
}
