// The five tiers, in the order that they always have, and their vessels.

export const TIERS = ["working", "short_term", "episodic", "long_term", "semantic"];

const NAMES = {
  working: "Working",
  short_term: "Short term",
  episodic: "Episodic",
  long_term: "Long term",
  semantic: "Semantic",
};

/** What people read; the name itself where it is not one of the five. */
export const tierName = (tier) => NAMES[tier] ?? tier;

/** Whether a way leads up. */
export const isUp = (from, to) => TIERS.indexOf(from) < TIERS.indexOf(to);

/**
 * The drawings: [width, height] of the picture, the wall from rim to rim, and where the water stands when the vessel is
 * full and when it is empty. `breadth` is its share of the column. Larger for what matters longer, not for what holds more.
 */
export const VESSELS = {
  working: {
    size: [100, 86],
    breadth: 0.46,
    full: 20,
    empty: 80,
    wall: "M6 6 L14 64 Q15.500 80 31 80 L69 80 Q84.500 80 86 64 L94 6",
  },
  short_term: {
    size: [100, 120],
    breadth: 0.5,
    full: 22,
    empty: 114,
    wall: "M10 6 L17 98 Q18.500 114 34 114 L66 114 Q81.500 114 83 98 L90 6",
  },
  episodic: {
    size: [130, 172],
    breadth: 0.64,
    full: 40,
    empty: 166,
    wall: "M42 6 Q47 10 47 18 L47 40 C47 62 9 70 9 114 C9 148 30 166 54 166 L76 166 C100 166 121 148 121 114 C121 70 83 62 83 40 L83 18 Q83 10 88 6",
  },
  long_term: {
    size: [140, 204],
    breadth: 0.7,
    full: 40,
    empty: 198,
    wall: "M30 6 Q35 9 35 16 L35 24 C35 38 9 42 9 70 L9 168 Q9 198 39 198 L101 198 Q131 198 131 168 L131 70 C131 42 105 38 105 24 L105 16 Q105 9 110 6",
  },
  semantic: {
    size: [180, 236],
    breadth: 0.84,
    full: 30,
    empty: 230,
    wall: "M3 6 Q9 9 9 20 L9 142 C9 198 42 230 90 230 C138 230 171 198 171 142 L171 20 Q171 9 177 6",
  },
};

const FILM = 0.035;

/** How high the water stands, in [0, 1]: the root of the share, so that 3 of 50,000 still show, and never less than a film. */
export const level = (count, capacity) =>
  count <= 0 ? 0 : Math.max(FILM, Math.min(1, Math.sqrt(count / Math.max(capacity, 1))));
