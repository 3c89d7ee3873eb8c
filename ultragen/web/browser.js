// What the browser does for the page: it keeps settings, and copies links. Each function is handed
// to Gradio by its name.

// Settings by name, for the browser to keep; not before those that it has are back.
function keep(names, kept, ...values) {
  if (!window.ultragenRestored) return kept;
  return Object.fromEntries(names.map((name, index) => [name, values[index]]));
}

// The settings are back: what follows is a visitor's doing. The address of a share link has done
// its part; on a reload it would undo what was changed since.
function restored(names) {
  window.ultragenRestored = true;
  const address = new URL(window.location.href);
  for (const name of names) address.searchParams.delete(name);
  if (address.href !== window.location.href) window.history.replaceState(null, "", address);
  takeDrops();
}

// A file that is dropped anywhere on the page is handed to the button that takes such files.
function takeDrops() {
  const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (holdsFile(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    const input = document.getElementById("drop")?.previousElementSibling;
    if (!holdsFile(event) || event.defaultPrevented || !input) return;
    event.preventDefault();
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
}

// Copies the whole address; where the browser does not let a page do so, it says so.
async function copyLink(query, told) {
  if (!query?.startsWith("?")) return [query, told];
  const address = new URL(window.location.pathname + query, window.location.href).href;
  try {
    await navigator.clipboard.writeText(address);
    return [address, "The link is copied."];
  } catch {
    return [address, "This browser does not let the page copy: select the link and copy it."];
  }
}
