// Command switch is the network of tools/guest/hosts.sh: switch SOCKET, until it is killed.
package main

import (
	"fmt"
	"os"

	"github.com/infinite-llm/infinite/tools/guest/lan"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: switch SOCKET")
		os.Exit(2)
	}
	if _, err := lan.Listen(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}
