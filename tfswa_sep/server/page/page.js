// Small things that the page's modules share.

export function fromTemplate(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

// 75 -> "1:15"
export function clock(seconds) {
  const whole = Math.floor(Math.max(0, seconds));
  const minutes = Math.floor(whole / 60);
  return `${minutes}:${String(whole % 60).padStart(2, "0")}`;
}

// 75 -> "1 min left"
export function timeLeft(seconds) {
  if (seconds < 1) return "almost done";
  return seconds < 60 ? `${Math.ceil(seconds)} s left` : `${Math.round(seconds / 60)} min left`;
}

export function remember(name, value) {
  try {
    localStorage.setItem(`tfswa-sep ${name}`, value);
  } catch {
    // Private windows may forbid it.
  }
}

export function remembered(name) {
  try {
    return localStorage.getItem(`tfswa-sep ${name}`);
  } catch {
    return null;
  }
}
