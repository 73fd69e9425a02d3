package tgr

import (
	"fmt"
	"io"
	"log/slog"
)

// Redacted is embedded in a struct that holds secrets: whatever formats or logs the struct then shows *** in its place.
// That holds where package fmt may call methods, so not for a struct in an unexported field, nor where package json
// writes it.
type Redacted struct{}

// Format implements fmt.Formatter, for every verb.
func (Redacted) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// LogValue implements slog.LogValuer.
func (Redacted) LogValue() slog.Value { return slog.StringValue(hidden) }

// hidden is what a secret is shown as.
const hidden = "***"
