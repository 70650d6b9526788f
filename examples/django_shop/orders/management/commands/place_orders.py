from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction
from orders.models import Order
from orders.tasks import charge


class Changed(Exception):
    """The customer has changed their mind."""


class Command(BaseCommand):
    help = "Place three orders, the last of which is taken back before it is committed."

    def handle(self, *args: Any, **options: Any) -> None:
        for customer, amount in (("alice", "10.00"), ("bob", "20.00"), ("carol", "30.00")):
            try:
                with transaction.atomic():
                    order = Order.objects.create(customer=customer, amount=amount)
                    # Sent when, and only if, the order is committed.
                    charge.delay_on_commit(order.pk)
                    if customer == "carol":
                        raise Changed
            except Changed:
                self.stdout.write(f"{customer}'s order was taken back")
            else:
                self.stdout.write(f"{customer}'s order {order.pk} was placed")
