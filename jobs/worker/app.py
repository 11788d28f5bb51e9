"""The Celery application: every task of every installed app is a job, without an import of Punctual.

    app = Application("project")

Its one rule: `jobs.worker.task.Job` comes before every base class that a task names. So a base class that does not call
its parent cannot skip the start guard. Django is not ready when a project imports this module: import no models here.
"""

from functools import cached_property, partial
from typing import Any

from celery import Celery, Task
from celery.app.trace import task_has_custom
from celery.utils.imports import symbol_by_name
from django.apps import apps

from jobs.secrets import mask


class Application(Celery):
    # Names, resolved when they are needed.
    task_cls = "jobs.worker.task:Job"
    amqp_cls = "jobs.worker.broker:AMQP"
    log_cls = "jobs.worker.logs:Logging"
    loader_cls = "jobs.messages.discovery:Loader"
    events_cls = "jobs.worker.reports:Events"

    def _task_from_fun(  # type: ignore[override] # passes on all other arguments
        self, fun: Any, name: str | None = None, base: Any = None, **options: Any
    ) -> Any:
        # Celery's hook behind `@app.task` and `@shared_task`. No public hook receives `base`.
        if name == "celery.ping":  # with which celery.contrib.testing waits for its worker
            options.setdefault("ignore_result", False)
        return self._executable(super()._task_from_fun(fun, name, base=self._as_job(base), **options))

    def register_task(self, task: Any, **options: Any) -> Any:
        if isinstance(task, type):
            task = self._as_job(task)()
        elif not isinstance(task, self.Task):
            task.__class__ = self._as_job(type(task))
        return self._executable(super().register_task(task, **options))

    @cached_property
    def AsyncResult(self) -> Any:  # noqa: N802 - Celery's name
        return self.subclass_with_self(symbol_by_name("jobs.worker.results:Result"))

    def _get_backend(self) -> Any:
        # Celery's hook behind every result, also that of its own `AsyncResult`.
        backend = super()._get_backend()  # type: ignore[misc] # unknown to celery-types
        return symbol_by_name("jobs.worker.results:mended")(backend)

    def send_task(self, name: str, *args: Any, **options: Any) -> Any:
        """Publish a task. Inside a run it becomes a step of that run. The tasks of a chord keep their results."""
        if options.get("chord") is not None:
            options["ignore_result"] = False
        if apps.models_ready:
            from jobs.worker import canvas, context  # late: models cannot be imported with this module

            if execution := context.current():
                return canvas.send(partial(super().send_task, name, *args), execution, name, options)
        return super().send_task(name, *args, **options)

    def bugreport(self) -> str:
        """The text of `celery report` and `celery inspect report`."""
        return mask(super().bugreport())

    def _executable(self, task: Any) -> Any:
        from jobs.worker.loops import executing, executing_call  # late: models cannot be imported with this module

        if task_has_custom(task, "__call__"):  # Celery calls the task then, and that calls `run`
            type(task).__call__ = executing_call(type(task).__call__)
        else:
            body = "_orig_run" if hasattr(task, "_orig_run") else "run"  # with autoretry_for, `run` calls `_orig_run`
            setattr(task, body, executing(task, getattr(task, body)))
        return task

    def _as_job(self, base: Any) -> Any:
        if base is None or issubclass(base, self.Task):
            return base or self.Task
        attributes = {"abstract": True, "__module__": base.__module__}
        if getattr(base, "Request", Task.Request) != Task.Request:  # keep the base's own class, which Job's would hide
            attributes["Request"] = base.Request
        return type(base.__name__, (self.Task, base), attributes)
