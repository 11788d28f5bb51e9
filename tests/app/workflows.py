"""The workflows of docs/workflows.md: the code of that page, line by line. Tests run all of it."""

from celery import Task, chain, chord, group, shared_task
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage


@shared_task
def orders_of(day: str) -> list[int]:
    return [7, 8, 9]


@shared_task
def as_csv(orders: list[int]) -> str:
    return "\n".join(["order", *map(str, orders)])


@shared_task
def save(text: str, name: str) -> None:
    default_storage.save(name, ContentFile(text))


@shared_task
def mail(subject: str) -> None:
    save(subject, f"mails/{subject}")


@shared_task
def thumbnail(photo: str, width: int) -> None:
    save(f"{photo}, {width} wide", f"thumbnails/{photo}-{width}")


@shared_task
def invoice(customer: int, month: str) -> int:
    if customer < 0:
        raise ValueError(f"customer {customer} has no address")
    save(f"{10 * customer} EUR", f"invoices/{month}-{customer}")
    return 10 * customer


@shared_task
def total(amounts: list[int], name: str) -> int:
    save(str(sum(amounts)), f"totals/{name}")
    return sum(amounts)


@shared_task
def export_orders(day: str) -> None:
    chain(orders_of.s(day), as_csv.s(), save.s(f"exports/{day}")).delay()


@shared_task
def make_thumbnails(photo: str) -> None:
    group(thumbnail.s(photo, width) for width in (80, 320, 1280)).delay()


@shared_task
def close_month(month: str, customers: list[int]) -> None:
    chord([invoice.s(customer, month) for customer in customers], total.s(month)).delay()


@shared_task
def close_year(year: int, customers: list[int]) -> None:
    halves = [f"{year}-first", f"{year}-second"]
    closing = [chord([invoice.s(customer, half) for customer in customers], total.s(half)) for half in halves]
    chord(closing, total.s(f"{year}")).delay()


@shared_task
def remind(customers: list[str]) -> None:
    mail.map(f"reminder for {customer}" for customer in customers).delay()


@shared_task
def make_previews(photos: list[str]) -> None:
    thumbnail.starmap((photo, width) for photo in photos for width in (80, 320)).delay()


@shared_task
def make_covers(first: int, last: int) -> None:
    thumbnail.chunks(((f"cover{number}", 80) for number in range(first, last + 1)), 10).delay()


@shared_task
def welcome(customer: int) -> None:
    greetings = [mail.si(f"welcome, {customer}"), mail.si(f"{customer} is a customer now")]
    invoice.apply_async((customer, "entry"), link=greetings)


@shared_task
def bill(customer: int, month: str) -> None:
    invoice.s(customer, month).on_error(mail.si(f"{customer} has no invoice")).delay()


@shared_task
def publish_catalogue() -> None:
    chain(thumbnail.si("catalogue", 320), mail.si("the catalogue is out")).delay()


@shared_task
def count(warehouse: str, shelf: int) -> int:
    return 100 * shelf


@shared_task(bind=True)
def stock_of(self: Task, warehouse: str) -> int:
    shelves = {"north": 3, "south": 2}[warehouse]
    return self.replace(chord([count.s(warehouse, shelf) for shelf in range(shelves)], total.s(warehouse)))


@shared_task
def take_stock(warehouses: list[str]) -> None:
    chord([stock_of.s(warehouse) for warehouse in warehouses], total.s("stock")).delay()
