// A job may have a form field for each argument. Choosing a job reloads the page with its fields. A new schedule keeps
// its name, description and timing; an existing schedule shows its stored values again, except for the job.
document.addEventListener("DOMContentLoaded", () => {
  const job = document.querySelector("#periodictask_form #id_regtask");
  if (!job) return;
  const kept = location.pathname.endsWith("/add/")
    ? ["name", "description", "interval", "crontab", "solar", "clocked", "regtask"]
    : ["regtask"];
  job.addEventListener("change", () => {
    const page = new URLSearchParams(location.search);
    const filled = new FormData(job.form);
    kept.forEach((name) => page.set(name, filled.get(name) ?? ""));
    location.search = page;
  });
});
