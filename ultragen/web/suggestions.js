// Phrases that a click puts into the prompt, and Ctrl + Enter, which runs it.
// Gradio calls this once, with `element` and `server`. Each chip knows every wording of its value.

const field = () => document.querySelector("#prompt textarea");
const openers = [...element.querySelectorAll(".ug-opener")];
const groups = [...element.querySelectorAll("fieldset")];
const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const whole = (text, flags = "iu") => new RegExp(`(?<![\\p{L}-])${escaped(text)}(?![\\p{L}-])`, flags);

const chips = groups.flatMap((group) => [...group.querySelectorAll(".ug-chip")].map((button) => ({
  button,
  group,
  wordings: JSON.parse(button.dataset.wordings),
})));
const patterns = chips.flatMap((chip) => chip.wordings.map((wording) => [chip, whole(wording, "giu")]));

function write(text) {
  const prompt = field();
  prompt.value = text;
  prompt.dispatchEvent(new Event("input", { bubbles: true })); // so that Gradio sees it
}

// Where wordings stand in a text, but for those within a longer one: "sand" in "sand dunes".
function places(text) {
  const all = patterns.flatMap(([chip, pattern]) => [...text.matchAll(pattern)].map((found) => (
    { chip, start: found.index, length: found[0].length }
  )));
  const within = (one, other) => one.length < other.length && one.start >= other.start
    && one.start + one.length <= other.start + other.length;
  return all.filter((one) => !all.some((other) => within(one, other)));
}

// The longest wording of a group in a text: "red cliffs" rather than "cliffs".
function said(group, all) {
  let best = null;
  for (const place of all) {
    if (place.chip.group === group && place.length > (best ? best.length : 0)) best = place;
  }
  return best;
}

function press(chip) {
  const text = field().value;
  const now = said(chip.group, places(text));
  if (!now) {
    const rest = text.trim().replace(/[,.\s]+$/, "");
    write(rest ? `${rest}, ${chip.wordings[0]}` : chip.wordings[0]);
    return;
  }
  const [before, after] = [text.slice(0, now.start), text.slice(now.start + now.length)];
  if (now.chip !== chip) write(before + chip.wordings[0] + after);
  // A phrase that others hang on, "a lake under mountains", stays.
  else if (/(^|,)\s*$/.test(before) && /^\s*(,|$)/.test(after)) {
    write([before, after].map((part) => part.replace(/^[\s,]+|[\s,]+$/g, "")).filter(Boolean).join(", "));
  } else if (chip.group.dataset.attribute === "Time") write((before.trimEnd() + after).trim());
}

function mark(text) {
  const all = places(text);
  for (const group of groups) {
    const now = said(group, all);
    for (const { button } of chips.filter((each) => each.group === group)) {
      button.setAttribute("aria-pressed", Boolean(now && now.chip.button === button));
    }
  }
}

for (const chip of chips) chip.button.addEventListener("click", () => press(chip));

for (const opener of openers) {
  opener.addEventListener("click", () => {
    const open = opener.getAttribute("aria-expanded") !== "true";
    for (const each of openers) {
      const shown = open && each === opener;
      each.setAttribute("aria-expanded", shown);
      document.getElementById(each.getAttribute("aria-controls")).hidden = !shown;
    }
  });
}

element.querySelector(".ug-surprise").addEventListener("click", async () => {
  write(await server.surprise(field().value));
});

document.addEventListener("click", (event) => {
  const use = event.target.closest?.(".ug-use");
  if (!use) return;
  const word = use.dataset.word;
  write(word ? field().value.replace(whole(word), use.textContent) : use.textContent);
  field().focus();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  if (!event.target.closest?.("#prompt")) return;
  event.preventDefault();
  document.getElementById("generate").click();
});

// The page says so of every new prompt, typed or not.
document.addEventListener("ultragen:prompt", (event) => mark(event.detail || ""));
mark(field()?.value || "");
