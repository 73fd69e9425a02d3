package web

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"

	"github.com/terraphim/tgr"
)

// Client calls a server's API: the other end of Server. It is safe for concurrent use.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// LogLine is a line of a job's log with its number.
type LogLine struct {
	Line int `json:"line"` // from 1
	tgr.LogLine
}
