"use strict";
// Samples with their pictures: play from a click, follow the words, read codes under the pointer.
(() => {
  const strips = JSON.parse(document.getElementById("strip-data").textContent);
  document.querySelectorAll(".sample").forEach((sample, number) => {
    const audio = sample.querySelector("audio"), head = sample.querySelector(".playhead"), readout = sample.querySelector(".readout");
    const words = [...sample.querySelectorAll(".words button")], score = sample.querySelector(".score");
    if (!score) return; // nothing but text
    const resting = readout.textContent, seconds = parseFloat(score.style.getPropertyValue("--seconds"));
    const timeAt = (event) => {
      const box = score.getBoundingClientRect();
      return (seconds * (event.clientX - box.left)) / box.width;
    };
    sample.querySelectorAll(".strip").forEach((strip) => {
      const data = strips[number][+strip.dataset.strip];
      strip.onpointermove = (event) => {
        const frame = Math.floor(timeAt(event) * data.rate);
        if (frame >= 0 && frame < data.codes.length) readout.textContent = `${data.name}[${frame}] = ${data.codes[frame]} at ${(frame / data.rate).toFixed(2)} s`;
      };
      strip.onpointerleave = () => (readout.textContent = resting);
    });
    if (!audio) return;
    let until = Infinity;
    const follow = () => {
      const now = audio.currentTime;
      head.style.left = `${Math.min(100, (100 * now) / seconds)}%`;
      head.style.opacity = now > 0 ? 0.9 : 0;
      for (const word of words) word.classList.toggle("now", now > 0 && now >= +word.dataset.start && now < +word.dataset.end);
      if (now >= until) { audio.pause(); until = Infinity; }
      if (!audio.paused) requestAnimationFrame(follow);
    };
    audio.onplay = () => {
      document.querySelectorAll("audio").forEach((other) => other !== audio && other.pause());
      follow();
    };
    audio.onseeked = follow;
    const playFrom = (start, end) => { audio.currentTime = start; until = end; audio.play(); };
    for (const word of words) word.onclick = () => playFrom(+word.dataset.start, +word.dataset.end);
    sample.querySelector(".picture").onclick = (event) => playFrom(timeAt(event), Infinity);
  });
})();
