/* A Modbus device made with libmodbus, for the Modbus tests: TCP, or RTU as unit 1 when it is given
 * the path of a serial device. Prints one JSON line with its port and the values it holds, put there
 * by libmodbus's own functions where it has them. Ends at end of input. */
#include <errno.h>
#include <inttypes.h>
#include <modbus/modbus.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static uint16_t *at_table[2];
static const char *names[2] = {"holding", "input"};
static int at, told;

static void tell(int table, const char *type, const char *order, double value) {
    printf("%s{\"at\": \"%s:%d\", \"type\": \"%s\", \"order\": \"%s\", \"value\": %.17g}", told++ ? ", " : "",
           names[table], at, type, order, value);
}

/* Where libmodbus knows no such order: the bytes of the value, most significant first, in the order of
 * the letters. */
static void put(uint64_t value, int bytes, const char *order, uint16_t *to) {
    for (int i = 0; i < bytes; i += 2) {
        int high = (order[i] - 'A'), low = (order[i + 1] - 'A');
        to[i / 2] = (uint16_t)((value >> 8 * (bytes - 1 - high) & 0xFF) << 8 | (value >> 8 * (bytes - 1 - low) & 0xFF));
    }
}

static void integer(const char *type, uint64_t bits, int bytes, const char *order, double value) {
    for (int table = 0; table < 2; table++) {
        uint16_t *to = at_table[table] + at;
        if (bytes == 4 && !strcmp(order, "ABCD"))
            MODBUS_SET_INT32_TO_INT16(to, 0, (int32_t)(uint32_t)bits);
        else if (bytes == 8 && !strcmp(order, "ABCDEFGH"))
            MODBUS_SET_INT64_TO_INT16(to, 0, (int64_t)bits);
        else
            put(bits, bytes, order, to);
        tell(table, type, order, value);
    }
    at += bytes / 2;
}

static void single(float value, const char *order) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    for (int table = 0; table < 2; table++) {
        uint16_t *to = at_table[table] + at;
        /* Its modbus_set_float_abcd and the like are left out: in 3.1.6 their names are not what comes
         * over the wire (abcd arrives as BADC). */
        if (!strcmp(order, "CDAB"))
            modbus_set_float(value, to);
        else
            put(bits, 4, order, to);
        tell(table, "f32", order, value);
    }
    at += 2;
}

static void fill(modbus_mapping_t *map) {
    const char *two[] = {"AB", "BA"};
    const char *four[] = {"ABCD", "CDAB", "BADC", "DCBA"};
    const char *eight[] = {"ABCDEFGH", "GHEFCDAB", "BADCFEHG", "HGFEDCBA",
                           "EFGHABCD", "CDABGHEF", "FEHGBADC", "DCBAHGFE"};
    at_table[0] = map->tab_registers;
    at_table[1] = map->tab_input_registers;
    for (int i = 0; i < 2; i++) {
        integer("u16", 0xFFFE, 2, two[i], 0xFFFE);
        integer("i16", (uint16_t)-2, 2, two[i], -2);
        integer("i16", 0x1234, 2, two[i], 0x1234);
    }
    for (int i = 0; i < 4; i++) {
        integer("u32", 0x89ABCDEF, 4, four[i], 0x89ABCDEFu);
        integer("i32", (uint32_t)-19088744, 4, four[i], -19088744);
        single(23.5f, four[i]);
        single(-123.456f, four[i]);
    }
    for (int i = 0; i < 8; i++) {
        double value = -123.456;
        uint64_t bits;
        memcpy(&bits, &value, 8);
        integer("u64", 0x0012345678ABCDEF, 8, eight[i], (double)0x0012345678ABCDEF);
        integer("i64", (uint64_t)-0x0012345678ABCDEF, 8, eight[i], -(double)0x0012345678ABCDEF);
        integer("f64", bits, 8, eight[i], value);
    }
    modbus_set_bits_from_byte(map->tab_bits, 0, 0xA5);
    modbus_set_bits_from_byte(map->tab_input_bits, 0, 0x3C);
    for (int i = 0; i < 8; i++) {
        printf(", {\"at\": \"coil:%d\", \"type\": \"bool\", \"value\": %d}", i, 0xA5 >> i & 1);
        printf(", {\"at\": \"discrete:%d\", \"type\": \"bool\", \"value\": %d}", i, 0x3C >> i & 1);
    }
    map->tab_registers[900] = 0xA5C3;
    for (int i = 0; i < 16; i++)
        printf(", {\"at\": \"holding:900.%d\", \"type\": \"bool\", \"value\": %d}", i, 0xA5C3 >> i & 1);
}

/* Waits for something to read; 0 at end of input. */
static int wait_for(int fd) {
    struct pollfd both[2] = {{.fd = fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    char byte;
    for (;;) {
        if (poll(both, 2, -1) < 0 && errno != EINTR) return 0;
        if (both[1].revents && read(0, &byte, 1) <= 0) return 0;
        if (both[0].revents) return 1;
    }
}

static void serve(modbus_t *ctx, modbus_mapping_t *map, int fd, int lasts) {
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    while (wait_for(fd)) {
        int length = modbus_receive(ctx, query);
        if (length > 0) modbus_reply(ctx, query, length, map);
        else if (length < 0 && !lasts) return;
    }
    _exit(0);
}

int main(int argc, char **argv) {
    modbus_t *ctx = argc > 1 ? modbus_new_rtu(argv[1], 115200, 'N', 8, 1) : modbus_new_tcp("127.0.0.1", 0);
    modbus_mapping_t *map = modbus_mapping_new(16, 16, 1000, 1000);
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    int listener = -1;
    if (!ctx || !map) return 1;
    modbus_set_slave(ctx, 1);
    if (argc > 1) {
        if (modbus_connect(ctx) < 0) return 1;
        address.sin_port = 0;
    } else {
        listener = modbus_tcp_listen(ctx, 4);
        if (listener < 0 || getsockname(listener, (struct sockaddr *)&address, &size) < 0) return 1;
    }
    printf("{\"version\": \"%s\", \"signals\": [", LIBMODBUS_VERSION_STRING);
    fill(map);
    printf("], \"port\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    if (argc > 1) serve(ctx, map, modbus_get_socket(ctx), 1);
    while (wait_for(listener) && modbus_tcp_accept(ctx, &listener) >= 0) {
        serve(ctx, map, modbus_get_socket(ctx), 0);
        modbus_close(ctx);
    }
    return 0;
}
