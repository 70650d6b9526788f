"""A customer, and the name of the schema that its tasks run in."""

from __future__ import annotations

from django_tenants.models import DomainMixin, TenantMixin


class Customer(TenantMixin):
    auto_create_schema = True

    class Meta:
        app_label = "tenants"


class Domain(DomainMixin):
    class Meta:
        app_label = "tenants"
