// Phrases that a click puts into the prompt, and Ctrl + Enter, which runs it.
// Gradio calls this once, with `element` and `server`. Each chip knows every wording of its value.

const field = () => document.querySelector("#prompt textarea");
const openers = [...element.querySelectorAll(".ug-opener")];
const groups = [...element.querySelectorAll("fieldset")];
const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const whole = (text) => new RegExp(`(?<![\\p{L}-])${escaped(text)}(?![\\p{L}-])`, "iu");

const chips = groups.flatMap((group) => [...group.querySelectorAll(".ug-chip")].map((button) => ({
  button,
  group,
  wordings: JSON.parse(button.dataset.wordings),
})));

function write(text) {
  const prompt = field();
  prompt.value = text;
  prompt.dispatchEvent(new Event("input", { bubbles: true })); // so that Gradio sees it
}

// The longest wording of a group in a text: "red cliffs" rather than "cliffs".
function said(group, text) {
  let best = null;
  for (const chip of chips.filter((each) => each.group === group)) {
    for (const wording of chip.wordings) {
      const found = text.match(whole(wording));
      if (found && found[0].length > (best ? best.length : 0)) {
        best = { chip, start: found.index, length: found[0].length };
      }
    }
  }
  return best;
}

function press(chip) {
  const text = field().value;
  const now = said(chip.group, text);
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
  for (const group of groups) {
    const now = said(group, text);
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
