"""Figures as inline SVG: plain functions from numbers to markup, without a plotting library."""
