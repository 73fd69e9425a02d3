package vmapi

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted is embedded in a struct that holds secrets: whatever formats or logs the struct then shows *** in its place.
type redacted struct{}

// Format implements fmt.Formatter, for every verb.
func (redacted) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "***") }

// LogValue implements slog.LogValuer.
func (redacted) LogValue() slog.Value { return slog.StringValue("***") }
