// Scrolls to a part of the page, at once for those who don't like things to move.
window.ultragenShow = (selector, block) => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  document.querySelector(selector).scrollIntoView({ block, behavior: calm ? "auto" : "smooth" });
};

// What plays rests once a run computes, also one that a reload finds: it takes a CPU's time from what
// is to be made. Who plays it all the same, or the native clip by then, goes on.
{
  let computing = false;
  window.ultragenRest = (status) => {
    const began = !computing;
    computing = status.includes('role="progressbar"');
    if (began && computing) document.querySelectorAll(".uc video").forEach((video) => video.pause());
  };
}

// Counts an expected wait down. The server says it again only where it turns out otherwise.
setInterval(() => document.querySelectorAll(".ug-left").forEach((left) => {
  if (left.told !== left.dataset.told) {
    left.told = left.dataset.told;
    left.ends = performance.now() + 1000 * left.dataset.seconds;
  }
  const seconds = Math.max(1, Math.round((left.ends - performance.now()) / 1000));
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const two = (number) => String(number).padStart(2, "0");
  const shown = `${hours ? `${hours}:${two(minutes)}` : minutes}:${two(seconds % 60)}`;
  left.firstChild.data = shown; // not textContent: the observer below would look at all the page
}), 500);

// What Gradio's components leave unsaid to those who don't see the page. They are drawn anew as
// they change, so this looks again after every change, and writes only what is missing.
(() => {
  const set = (element, name, value) => {
    if (element && element.getAttribute(name) !== value) element.setAttribute(name, value);
  };
  const all = (selector, use) => document.querySelectorAll(selector).forEach(use);
  let ids = 0;

  // Gradio 6.31 gives each choice a name of its own, and those that are chosen or left a new one
  // each time: then arrow keys don't go through them, and Tab stops at each.
  function join(choice) {
    const title = choice.closest("fieldset.block")?.querySelector("[data-testid=block-info]");
    if (title?.id && choice.type === "radio") set(choice, "name", title.id);
  }

  function complete() {
    all("fieldset.block", (group) => {
      const title = group.querySelector("[data-testid=block-info]");
      if (!title) return;
      title.id ||= `ug-title-${++ids}`;
      set(group, "role", group.querySelector("input[type=radio]") ? "radiogroup" : "group");
      set(group, "aria-labelledby", title.id);
      group.querySelectorAll("input[type=radio]").forEach(join);
    });
    all(".gr-accordion > button.label-wrap", (button) => {
      set(button, "aria-expanded", String(button.classList.contains("open")));
      set(button.querySelector(".icon"), "aria-hidden", "true");
    });
    all(".ug-gallery", (gallery) => {
      const buttons = [...gallery.querySelectorAll("button.thumbnail-item")];
      buttons.forEach((button, number) => {
        const caption = button.querySelector(".caption-label")?.textContent.trim();
        set(button, "aria-label", `${caption} (${number + 1} of ${buttons.length})`);
        set(button.querySelector("img"), "alt", ""); // the caption says it
      });
    });
    all("time.ug-until:not([data-local])", (time) => {
      time.dataset.local = "";
      time.textContent = new Date(time.dateTime).toLocaleString(document.documentElement.lang || "en", {
        day: "numeric", month: "long", hour: "2-digit", minute: "2-digit", hourCycle: "h23",
      });
    });
    all("div.empty[aria-label]", (empty) => set(empty, "role", "img")); // else it has no name
    all("button.reset-button", (button) => {
      const title = button.closest(".block")?.querySelector("[data-testid=block-info]");
      if (title) set(button, "aria-label", `Reset ${title.textContent.trim()}`);
    });
  }

  let waiting = false;
  new MutationObserver((changes) => {
    // At once: the next key may be pressed before all else is looked at.
    changes.filter((change) => change.attributeName === "name").forEach((change) => join(change.target));
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; complete(); }, 50);
  }).observe(document, { childList: true, subtree: true, attributeFilter: ["class", "aria-label", "name"] });
})();
