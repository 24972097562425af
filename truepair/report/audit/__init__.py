"""The audit page: what `truepair audit` found in a pair table, to look at, to search, to mark and to act on."""

from truepair.report.audit.page import write_audit_page as write_audit_page
