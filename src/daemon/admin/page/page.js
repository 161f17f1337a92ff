
"use strict";
// Each event is the whole of <main>, as the daemon renders it: what has changed of it takes the place of what was there.
const says = document.getElementById("says");
const news = document.getElementById("news");
const main = () => document.querySelector("main");
const now = () => new Date().toLocaleTimeString();
// True once the process that answered has said its last word.
let over = false;

const write = (element, text) => {
  // A text that is set again would be read out again.
  if (element.textContent !== text) element.textContent = text;
};

const show = (html) => {
  const old = main();
  const fresh = new DOMParser().parseFromString(html, "text/html").querySelector("main");
  if (!fresh) return;
  if (old.dataset.build !== fresh.dataset.build) {
    // Another version's page, which comes with a style and a script of its own.
    location.reload();
    return;
  }
  if (old.dataset.worker !== fresh.dataset.worker) {
    write(news, `Worker ${fresh.dataset.worker} took over from worker ${old.dataset.worker} at ${now()}.`);
  } else if (old.classList.contains("past")) {
    write(news, "");
  }
  write(says, fresh.dataset.says);
  const before = new Map([...old.children].map((section) => [section.id, section]));
  const sections = [...fresh.children].map((section) => {
    const same = before.get(section.id);
    return same && same.isEqualNode(section) ? same : section;
  });
  fresh.replaceChildren(...sections);
  old.replaceWith(fresh);
};

const past = (text) => {
  main().classList.add("past");
  write(news, text);
};

const connect = () => {
  const events = new EventSource("events");
  events.addEventListener("now", (event) => {
    over = false;
    show(event.data);
  });
  events.addEventListener("last", (event) => {
    over = true;
    show(event.data);
    past(`This is the last picture, of ${now()}. Waiting for a successor.`);
  });
  events.addEventListener("error", () => {
    if (!over) {
      over = true;
      past(`The connection was lost at ${now()}. Trying again.`);
    }
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, 1000);
  });
};
connect();
