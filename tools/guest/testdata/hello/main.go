// Hello shows that a Go binary with cgo runs in the guest: it lists the RDMA devices and sends a line over
// TCP from one address of the guest to the other.
package main

// static int twice(int n) { return 2 * n; }
import "C"

import (
	"bufio"
	"fmt"
	"log"
	"net"
	"os"
)

func main() {
	devices, err := os.ReadDir("/sys/class/infiniband")
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "10.77.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintf(conn, "%d devices\n", int(C.twice(C.int(len(devices))))/2)
	}()
	conn, err := listener.Accept()
	if err != nil {
		log.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print("hello: ", line)
}
