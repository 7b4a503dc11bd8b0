// Puts the states of a growing program behind a slider. Without it the page shows them one below the other.
for (const growth of document.querySelectorAll(".growth")) {
  const states = [...growth.querySelectorAll(".state")];
  if (states.length < 2) continue;
  const controls = growth.querySelector(".controls");
  const slider = controls.querySelector("input");
  const [first, previous, next, play] = controls.querySelectorAll("button");
  let timer = null;

  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  const show = (index) => {
    const shown = Math.max(0, Math.min(states.length - 1, index));
    states.forEach((state, i) => state.classList.toggle("current", i === shown));
    slider.value = shown + 1;
    slider.setAttribute("aria-valuetext", states[shown].querySelector("figcaption").textContent);
    first.disabled = previous.disabled = shown === 0;
    next.disabled = shown === states.length - 1;
  };
  const current = () => slider.value - 1;
  const step = (index) => { stop(); show(index); };

  slider.addEventListener("input", () => step(current()));
  first.addEventListener("click", () => step(0));
  previous.addEventListener("click", () => step(current() - 1));
  next.addEventListener("click", () => step(current() + 1));
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (current() === states.length - 1) show(0);
    play.textContent = "Pause";
    timer = setInterval(() => {
      show(current() + 1);
      if (current() === states.length - 1) stop();
    }, 900);
  });

  controls.hidden = false;
  growth.classList.add("stepping");
  show(states.length - 1);
}
