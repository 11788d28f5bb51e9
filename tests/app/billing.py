"""`billing.models` as the snippets of the documents import it: the models of a user's app.

The app is not installed and has no migrations: tests/database/test_snippets.py creates its tables.
"""

from django.db import models


class Customer(models.Model):
    name = models.CharField(max_length=100)
    email = models.EmailField()
    country = models.CharField(max_length=2)
    joined_at = models.DateTimeField()

    class Meta:
        app_label = "billing"

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE)
    at = models.DateTimeField()
    charges = models.PositiveIntegerField(default=0)

    class Meta:
        app_label = "billing"

    def __str__(self) -> str:
        return f"order {self.pk} of {self.customer}"

    def charge(self) -> None:
        self.charges += 1
        self.save(update_fields=["charges"])


class Article(models.Model):
    name = models.CharField(max_length=100)
    cents = models.IntegerField()

    class Meta:
        app_label = "billing"

    def __str__(self) -> str:
        return self.name


class Rate(models.Model):
    currency = models.CharField(max_length=3, unique=True)
    value = models.FloatField()

    class Meta:
        app_label = "billing"

    def __str__(self) -> str:
        return self.currency


MODELS = (Customer, Order, Article, Rate)
