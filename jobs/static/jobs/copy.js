// A button with `data-copy` copies the text of the field that it names. Without JavaScript it stays hidden.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("[data-copy]").forEach((button) => {
    const field = document.querySelector(button.dataset.copy);
    button.hidden = false;
    button.addEventListener("click", async () => {
      field.select();
      try {
        await navigator.clipboard.writeText(field.value);
      } catch {
        document.execCommand("copy"); // a page without HTTPS has no clipboard
      }
      button.textContent = "Copied";
    });
  });
});
