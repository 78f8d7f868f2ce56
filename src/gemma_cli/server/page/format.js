// Numbers and times in English; times are the viewer's own.

const LOCALE = "en";
const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat(LOCALE, { notation: "compact", maximumFractionDigits: 1 });
const three = new Intl.NumberFormat(LOCALE, { maximumSignificantDigits: 3 });
const parts = new Intl.NumberFormat(LOCALE, {
  minimumFractionDigits: 2,
  maximumFractionDigits: 2,
  signDisplay: "negative",
});
const share = new Intl.NumberFormat(LOCALE, { style: "percent", maximumFractionDigits: 0 });
const ago = new Intl.RelativeTimeFormat(LOCALE, { numeric: "always", style: "short" });
const dayTime = new Intl.DateTimeFormat(LOCALE, {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  hourCycle: "h23",
});
const full = new Intl.DateTimeFormat(LOCALE, { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" });
const hourMinute = new Intl.DateTimeFormat(LOCALE, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const weekday = new Intl.DateTimeFormat(LOCALE, { weekday: "short", day: "numeric" });

export const count = (number) => whole.format(number);
export const compact = (number) => short.format(number);
export const precise = (number) => three.format(number);
export const part = (number) => parts.format(number);
export const percent = (fraction) => share.format(fraction);
export const moment = (iso) => full.format(new Date(iso));
export const slot = (iso) => dayTime.format(new Date(iso));
export const clock = (time) => hourMinute.format(time instanceof Date ? time : new Date(time));
export const day = (date) => weekday.format(date);

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

const UNITS = [
  ["year", 31_557_600],
  ["month", 2_629_800],
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];

/** Between now and then, in one unit: "in 3 hr.", "12 min. ago", "just now". */
export function relative(iso, now = Date.now()) {
  const seconds = (new Date(iso).getTime() - now) / 1000;
  for (const [unit, length] of UNITS) {
    if (Math.abs(seconds) >= length) return ago.format(Math.trunc(seconds / length), unit);
  }
  if (Math.abs(seconds) < 10) return seconds > 0 ? "now" : "just now";
  return ago.format(Math.trunc(seconds / 10) * 10, "second");
}

/** How long something lasts, exactly where it is a round number: "15 min", "7 days". */
export function lasting(seconds) {
  if (seconds === null || seconds === undefined) return "for ever";
  const units = [
    ["day", 86_400],
    ["hour", 3_600],
    ["min", 60],
  ];
  for (const [unit, length] of units) {
    if (seconds >= length) {
      const number = precise(seconds / length);
      return `${number} ${unit}${unit === "min" || number === "1" ? "" : "s"}`;
    }
  }
  return `${count(seconds)} s`;
}

const SIZES = ["B", "KB", "MB", "GB", "TB"];

export function bytes(number) {
  const step = number > 0 ? Math.min(Math.floor(Math.log(number) / Math.log(1000)), SIZES.length - 1) : 0;
  return `${precise(number / 1000 ** Math.max(step, 0))} ${SIZES[Math.max(step, 0)]}`;
}

export function milliseconds(number) {
  return number >= 1000 ? `${precise(number / 1000)} s` : `${precise(number)} ms`;
}

/** A foreign text within a sentence: its direction, or an override in it, ends with it. */
export const isolated = (text) => `\u2068${text}\u2069`;

/** When something leaves; what should have left already is about to. */
export const leaving = (iso) => (Date.parse(iso) > Date.now() ? `leaves ${relative(iso)}` : "leaving");

/** The first words of a text, on one line. */
export function firstWords(text, most = 80) {
  const line = text.replace(/\s+/gu, " ").trim();
  return line.length <= most ? line : `${line.slice(0, most - 1).trimEnd()}…`;
}
