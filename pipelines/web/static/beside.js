"use strict";
// Two pages beside each other: what one shows, the other is told of.

const frames = [...document.querySelectorAll("iframe")];
window.addEventListener("message", event => {
  const from = frames.findIndex(frame => frame.contentWindow === event.source);
  if (event.origin === location.origin && from >= 0) frames[1 - from].contentWindow.postMessage(event.data, location.origin);
});
