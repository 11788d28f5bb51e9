// A job may have a field for each of its arguments. Choosing it on the page of a new schedule loads them, and keeps what
// was filled in so far.
document.addEventListener("DOMContentLoaded", () => {
  const job = document.querySelector("#periodictask_form #id_regtask");
  if (!job || !location.pathname.endsWith("/add/")) return;
  const kept = ["name", "regtask", "description", "interval", "crontab", "solar", "clocked"];
  job.addEventListener("change", () => {
    const filled = new FormData(job.form);
    location.search = new URLSearchParams(kept.map((name) => [name, filled.get(name)]).filter(([, value]) => value));
  });
});
