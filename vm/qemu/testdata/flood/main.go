// Command flood is an agent gone mad: it boots as the real one does, and then writes garbage to its port for ever.
package main

import (
	"os"

	"github.com/terraphim/tgr/guest"
)

func main() {
	link, err := guest.Boot(os.Stdout)
	if err != nil {
		os.Exit(1)
	}
	garbage := make([]byte, 64<<10)
	for i := range garbage {
		garbage[i] = byte(i * 7)
	}
	for {
		link.Port.Write(garbage) // an error says that no host is connected
	}
}
