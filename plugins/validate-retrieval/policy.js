// Retrieval grounding: for every sentence of the answer the best passage of the supplied
// documents is looked up. The sentence is supported when that passage has most of its words,
// the rare ones counting more, and all of its numbers. The share of supported sentences is the
// confidence.
//
// Words are compared, not meanings: it finds what was invented, not what was turned round.
import { accept, escalate, finding, reject } from './homeostat/homeostat.js';
import { config, number, wrong } from './homeostat/config.js';

// Less text than this is a question, not a document.
const DOCUMENT_CHARS_MIN = 200;
// A passage: what belongs together seldom stands in more sentences.
const PASSAGE_SENTENCES = 3;
// What the forms of a word have in common: paint, painted, painting.
const STEM_LETTERS = 5;
// More is not looked at: a policy has a deadline.
const DOCUMENT_CHARS_MAX = 50_000;
const ANSWER_CHARS_MAX = 10_000;

// Words that every text has.
const COMMON = new Set(
  ('a about after all also an and any are as at be been before but by can could did do does for ' +
    'from had has have he her his how i if in into is it its may more most no not of on or other ' +
    'our s she should so some such t than that the their them then there these they this those to ' +
    'was we were what when where which who why will with would yes you your').split(' '),
);

/** Sentences: they end in a mark and white space, or with their line. List marks are dropped. */
const sentences = (text) =>
  text
    .split('\n')
    .map((line) => line.replace(/^\s*(?:[-*•#>]+|\d{1,3}[.)])\s+/u, ''))
    .flatMap((line) => line.replace(/([.!?。！？]["'”’)]?)\s+/gu, '$1\n').split('\n'))
    .map((sentence) => sentence.trim())
    .filter((sentence) => sentence !== '');

/** What of a text is compared: numbers as they are, of words the stem, roughly. */
function terms(text) {
  const found = text.toLowerCase().match(/\d[\d.,]*|\p{L}+/gu) ?? [];
  const plain = found.map((t) => (isNumber(t) ? t.replace(/,/g, '').replace(/\.$/, '') : t));
  return new Set(plain.filter((t) => !COMMON.has(t)).map((t) => (isNumber(t) ? t : stem(t))));
}

const isNumber = (term) => term[0] >= '0' && term[0] <= '9';

const isPlural = (word) => word.length > 3 && word.endsWith('s');
const stem = (word) => (isPlural(word) ? word.slice(0, -1) : word).slice(0, STEM_LETTERS);

/** The terms of passages that overlap, and in which of them each term stands. */
function index(text) {
  // A question asserts nothing: an answer that only repeats it has no support.
  const asks = /[?？]["'”’)]?$/u;
  const stated = sentences(text).filter((s) => !asks.test(s));
  const read = stated.map(terms);
  const where = new Map();
  const passages = read.map((_, i) => {
    const passage = new Set();
    for (const sentence of read.slice(i, i + PASSAGE_SENTENCES)) {
      for (const term of sentence) passage.add(term);
    }
    for (const term of passage) {
      if (!where.has(term)) where.set(term, []);
      where.get(term).push(i);
    }
    return passage;
  });
  return { passages, where };
}

/** How far the best passage supports a claim, and what the claim has beyond it. */
function support(claim, { passages, where }) {
  const score = new Array(passages.length).fill(0);
  let all = 0;
  for (const term of claim) {
    const places = where.get(term) ?? [];
    const weight = Math.log(1 + passages.length / (places.length || 0.5));
    all += weight;
    for (const place of places) score[place] += weight;
  }
  const best = score.reduce((most, s) => Math.max(most, s), 0);
  const passage = passages[score.indexOf(best)] ?? new Set();
  const missing = [...claim].filter((term) => !passage.has(term));
  return { share: all > 0 ? best / all : 1, missing };
}

/** Enough of the answer is supported, or not; `detail` tells what is not. */
function verdict(answer, confidence, detail, strict) {
  const findings = [finding('grounded', confidence === 1, detail)];
  // The threshold is a number of 32 bits: 4 of 5 are 0.8.
  const passed = Math.fround(confidence) >= answer.acceptThreshold;
  if (passed) return accept(confidence, findings);
  if (answer.stepsLeft > 0) return escalate(confidence, findings);
  if (strict === 'off') return accept(confidence, findings);
  return reject('unreliable', `no tier stayed with the documents: ${detail}`);
}

/** @type {import('./homeostat/contract.js').Validator} */
export const validator = {
  validate(request, answer) {
    const overlap = number('overlap', 0.5, 0, 1);
    const strict = config('strict') ?? 'off';
    if (strict !== 'on' && strict !== 'off') wrong('strict', strict, 'on or off');

    if (answer.finish === 'unfinished') return { tag: 'undecided' };
    const unchecked = (why) => accept(0.5, [finding('grounded', true, why)]);
    const told = request.messages.filter((m) => m.role !== 'assistant').map((m) => m.content);
    const documents = told.join('\n');
    if (documents.length < DOCUMENT_CHARS_MIN) return unchecked('no document was supplied');
    if (documents.length > DOCUMENT_CHARS_MAX) return unchecked('the documents are too long');
    if (request.cutBytes > 0) return unchecked('the documents were cut, and may hold what is missing');

    const said = sentences(answer.text.slice(0, ANSWER_CHARS_MAX));
    const claims = said.filter((s) => terms(s).size > 0);
    if (claims.length === 0) return verdict(answer, 0, 'the answer says nothing', strict);
    const known = index(documents);
    const doubts = [];
    for (const claim of claims) {
      const { share, missing } = support(terms(claim), known);
      const numbers = missing.filter(isNumber);
      if (share < overlap || numbers.length > 0) {
        const lack = numbers.length > 0 ? numbers : missing;
        doubts.push(`"${claim.slice(0, 80)}" has no passage with ${lack.slice(0, 5).join(', ')}`);
      }
    }
    const confidence = 1 - doubts.length / claims.length;
    const detail = doubts[0] ?? `${claims.length} of ${claims.length} supported`;
    return verdict(answer, confidence, detail, strict);
  },
};
